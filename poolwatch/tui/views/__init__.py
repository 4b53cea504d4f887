"""The seven views, one table each, in the order of their keys 1 to 7."""

from typing import Any

from poolwatch.tui.state.board import Board
from poolwatch.tui.views.blocking import BlockingView
from poolwatch.tui.views.findings import FindingsView
from poolwatch.tui.views.holds import HoldsView
from poolwatch.tui.views.processes import ProcessesView
from poolwatch.tui.views.sessions import SessionsView
from poolwatch.tui.views.sites import SitesView
from poolwatch.tui.views.view import View
from poolwatch.tui.views.waits import WaitsView

VIEWS: tuple[View[Any], ...] = (
    HoldsView(),
    WaitsView(),
    SessionsView(),
    BlockingView(),
    SitesView(),
    FindingsView(),
    ProcessesView(),
)


def named(name: str) -> View[Any]:
    """Return the view of a name."""
    return next(view for view in VIEWS if view.name == name)


def known_fields(board: Board | None = None) -> set[str]:
    """Return the names of the fields that the filter knows in some view.

    With a board: also the labels that its holds, waits and statistics carry.
    """
    known = {name for view in VIEWS for name in view.known_fields()}
    for process in board.snapshot.processes if board else ():
        for labels in (each.labels for each in process.holds):
            known |= {name.casefold() for name in labels}
        for labels in (each.labels for each in process.waits):
            known |= {name.casefold() for name in labels}
        known |= {each.label.casefold() for each in process.labels}
    return known
