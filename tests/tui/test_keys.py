"""The table of keys: what is bound exists, and what is bound is explained."""

from poolwatch.tui.action_dialog import ActionDialog
from poolwatch.tui.app import Dashboard
from poolwatch.tui.board_screen import Page
from poolwatch.tui.incident_screens import IncidentScreen, IncidentsPage
from poolwatch.tui.keys import KEYS, is_live
from poolwatch.tui.pages import DetailPage
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.time.time_screen import TimeScreen

SCREENS = {
    "app": Dashboard,
    "main": MainScreen,
    "incident": IncidentScreen,
    "page": Page,
    "detail": DetailPage,
    "incidents": IncidentsPage,
    "action": ActionDialog,
    "time": TimeScreen,
}
SIGNS = {
    **{str(number): "…" for number in range(2, 7)},
    "down": "↓",
    "up": "↑",
    "pagedown": "pgdn",
    "pageup": "pgup",
    "slash": "/",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "plus": "+",
    "minus": "-",
    "escape": "esc",
}
"""Textual's names of keys, and their signs on the help page."""


def action(key):
    return key.action.partition("(")[0]


def test_every_bound_key_has_an_action():
    """Textual ignores a binding whose action does not exist."""
    for key in KEYS:
        if key.keys:
            assert hasattr(SCREENS[key.screen], f"action_{action(key)}"), key


def test_every_footer_is_one_of_a_screen():
    shown = {screen for key in KEYS for screen in key.footers.split()}
    assert shown == {
        screen.FOOTER for screen in SCREENS.values() if screen is not Dashboard
    } | {"filter", "seek"}


def test_the_help_page_explains_every_key_of_the_main_screen():
    """By its sign in the left column, such as ``g G  home end``."""
    signs = {sign for key in KEYS if key.help for sign in key.help[0].split()}
    for key in KEYS:
        if key.screen in ("app", "main") and key.action != "help":
            names = [SIGNS.get(name, name) for name in key.keys.split(",")]
            assert signs & set(names), key


def test_only_what_controls_the_readings_is_live():
    assert {action(key) for key in KEYS if is_live(action(key))} == {
        "pause",
        "read",
        "pace",
    }
