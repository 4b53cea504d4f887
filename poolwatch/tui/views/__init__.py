"""The seven views, one table each, in the order of their keys 1 to 7."""

from typing import Any

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


def known_fields() -> set[str]:
    """Return the names of the fields that the filter knows in some view."""
    return {name for view in VIEWS for name in view.known_fields()}
