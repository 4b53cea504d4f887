"""The selection goes with its hold when equal rows are merged or not."""

from fakes import FakeSource, frame, hold, process, snapshot
from helpers import until_async

from poolwatch.tui.app import Dashboard


async def test_the_selected_hold_stays_selected():
    holds = [
        hold(f"h{n}", held_s=90.0 - n, site=frame(f"/srv/app.py:{max(n, 2)}"))
        for n in range(9)
    ]
    app = Dashboard(FakeSource(snapshot(process(*holds))), refresh=3600)
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        await pilot.press("j", "j", "j", "m")  # h0 to h2 are one row when merged
        await pilot.pause()
        selection = app.board.tables["holds"].selection
        assert len(selection.shown) == 7
        assert selection.row.first.hold.id == "h3"
        await pilot.press("m")
        await pilot.pause()
        assert len(selection.shown) == 9  # no tombstone
        assert selection.row.first.hold.id == "h3"
