"""A machine too slow to draw each reading shows the newest one."""

from fakes import FakeSource, hold, process, snapshot
from helpers import until_async

from poolwatch.tui.app import Dashboard
from poolwatch.tui.polling import Reading


async def test_readings_do_not_pile_up():
    source = FakeSource(snapshot(process(hold())))
    source.free.clear()
    app = Dashboard(source)
    async with app.run_test() as pilot:
        accepted = []

        def accept(reading):
            accepted.append(reading)

        app.watch(app, "reading", accept, init=False)
        for n in range(1, 4):
            app.poller._on_reading(Reading(float(n), snapshot(process(hold()))))
        await until_async(lambda: app.board.last)
        await pilot.pause()
        assert [each.requested_at for each in accepted] == [3.0]
