"""Ten hours of opening and closing pages take no memory."""

import gc

from fakes import FakeSource, hold, process, snapshot
from helpers import until_async
from textual.strip import Strip

from poolwatch.tui.app import Dashboard


def drawn_lines():
    gc.unfreeze()
    gc.collect()
    # isinstance() would ask lazy objects of other tests for their class
    return sum(type(each) is Strip for each in gc.get_objects())


async def test_a_closed_page_leaves_no_drawn_lines():
    app = Dashboard(FakeSource(snapshot(process(hold()))), refresh=3600)
    async with app.run_test(size=(100, 40)) as pilot:
        await until_async(lambda: app.board.last_good)
        counts = []
        for _ in range(6):
            for key in ("enter", "escape", "question_mark", "escape", "t", "escape"):
                await pilot.press(key)
                await pilot.pause()
            counts.append(drawn_lines())
        # on a busy machine a page may close before it is drawn
        assert counts[-1] < max(counts[:3]) + 500  # 700 a round, if they stayed
