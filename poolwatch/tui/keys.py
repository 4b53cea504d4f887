"""Every key of the dashboard, with its action, footer label and help text."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """One action and the keys that start it."""

    screen: str
    """The screen that binds it; ``app`` stands for every screen."""
    keys: str
    """Textual's key names; empty if a Textual widget handles the key."""
    action: str
    footer: tuple[str, str] | None = None
    """Key symbol and label."""
    footers: str = ""
    """Screens whose footer shows the key, separated by spaces."""
    help: tuple[str, str] | None = None
    """Key symbols and explanation."""
    live: bool = False
    """Whether the action controls readings; disabled on an incident snapshot."""


# fmt: off
KEYS = (
    Key("main", "1", "view(1)",
        help=("1 … 7  w c", "a view by its number; w: findings, c: call sites")),
    *(Key("main", str(number), f"view({number})") for number in range(2, 8)),
    Key("main", "tab", "next_view(1)",
        help=("tab  shift+tab", "the next view, the previous view")),
    Key("main", "shift+tab", "next_view(-1)"),
    Key("main", "w", "view(6)"),
    Key("main", "c", "view(5)"),
    Key("main", "down,j", "move(1)",
        help=("↑ ↓  j k", "select a row; the selection follows it")),
    Key("main", "up,k", "move(-1)"),
    Key("main", "g,home", "edge(0)", help=("g G  home end", "first and last row")),
    Key("main", "G,end", "edge(1)"),
    Key("main", "pagedown,ctrl+f,space", "page(1)",
        help=("pgup pgdn", "one page up or down; space: down")),
    Key("main", "pageup,ctrl+b", "page(-1)"),
    Key("main", "enter", "open", ("↵", "open"), "main incident time",
        ("enter", "from a finding, call site or process to its holds; to a stack")),
    Key("main", "slash", "filter", ("/", "filter"), "main incident time",
        ("/", "filter; esc clears it")),
    Key("app", "t", "time", ("t", "time"), "main",
        ("t", "the last ten minutes, or the history; from a finding: when it began")),
    Key("app", "S", "time(True)", help=("S", "how it was at a time: 03:12, -5min")),
    Key("time", "left", "step(-1)", ("← →", "step"), "time",
        ("← →  shift", "in the past: one reading back or ahead; with shift: ten")),
    Key("time", "right", "step(1)"),
    Key("time", "shift+left", "step(-10)"),
    Key("time", "shift+right", "step(10)"),
    Key("time", "n", "incident(False)", ("n N", "incident"), "time",
        ("n N", "in the past: where the next incident began, or the one before")),
    Key("time", "N", "incident(True)"),
    Key("time", "S", "seek", ("S", "seek"), "time"),
    Key("time", "plus,equals_sign", "span(False)",
        help=("+ -", "in the past: a shorter or longer stretch of time")),
    Key("time", "minus", "span(True)"),
    Key("app", "e", "save", ("e", "save"), "time",
        ("e  E", "save this moment for poolwatch tui FILE; or the picture, as SVG")),
    Key("app", "E", "picture"),
    Key("app", "z", "incidents", ("z", "snapshots"), "main",
        ("z", "incident snapshots: the first moment of each pool's first incident")),
    Key("main", "greater_than_sign,s", "sort(1)", ("s", "sort"), "main incident",
        ("s  < >", "sort by the next or previous column; or click its title")),
    Key("main", "less_than_sign", "sort(-1)"),
    Key("main", "r", "reverse", help=("r", "reverse the order")),
    Key("main", "m", "merge", ("m", "merge"), "main incident",
        ("m", "merge equal rows, or show each")),
    Key("main", "L", "by_label",
        help=("L", "call sites: by the next label instead, such as endpoint")),
    Key("main", "a", "all",
        help=("a", "show or hide short holds, and findings that are over")),
    Key("main", "y", "copy", ("y", "copy"), "main incident time",
        ("y  Y", "copy path:line; or all that is known, in Markdown")),
    Key("page", "", "copy",
        help=("", "in tmux, which else keeps it: tmux set -g set-clipboard on")),
    Key("main", "Y", "copy_issue"),
    Key("main", "C", "act('cancel')", help=("C  K",
        "cancel a statement, end a session; needs --allow-actions and a DSN")),
    Key("main", "K", "act('terminate')"),
    Key("filter", "", "open", ("↵", "keep the filter"), "filter"),
    Key("filter", "", "back", ("esc", "clear it"), "filter"),
    Key("seek", "", "open", ("↵", "go to this time"), "seek"),
    Key("seek", "", "back", ("esc", "close"), "seek"),
    Key("incidents", "enter", "open", ("↵", "open"), "incidents"),
    Key("incidents", "down,j", "move(1)", ("↑↓", "select"), "incidents filter"),
    Key("incidents", "up,k", "move(-1)"),
    Key("incidents", "z", "back"),
    Key("page", "escape,q", "back", ("esc", "back"), "page detail incidents"),
    Key("page", "down,j", "scroll(1)", ("j k", "scroll"), "page detail"),
    Key("page", "up,k", "scroll(-1)"),
    Key("page", "pagedown,space", "scroll(15)"),
    Key("page", "pageup", "scroll(-15)"),
    Key("page", "g,home", "scroll(-100000)"),
    Key("page", "G,end", "scroll(100000)"),
    Key("detail", "n", "step(1)", ("n N", "next, previous"), "detail",
        ("n N", "on the page of a hold or wait: the next one, the previous one")),
    Key("detail", "N", "step(-1)"),
    Key("detail", "y", "copy", ("y", "copy"), "detail"),
    Key("detail", "Y", "copy_issue"),
    Key("detail", "f", "fold", ("f", "fold"), "detail",
        ("f", "in the stack: unfold library frames")),
    Key("app", "p", "pause", ("p", "pause"), "main detail",
        ("p", "pause or resume the readings"), live=True),
    Key("app", "R", "read", ("R", "read now"), "main", ("R", "read now"), live=True),
    Key("app", "plus,equals_sign", "pace(True)", ("+-", "pace"), "main",
        ("+ -", "read more often, less often"), live=True),
    Key("app", "minus", "pace(False)", live=True),
    Key("main", "v", "pane", ("v", "pane"), "main incident time",
        ("v", "show or hide the pane below")),
    Key("main", "question_mark,f1", "help", ("?", "help"), "main time"),
    Key("main", "escape", "back", help=("esc", "one step back")),
    Key("incident", "q", "back", ("esc", "back"), "incident"),
    Key("action", "y", "confirm", ("y", "yes"), "action"),
    Key("action", "n", "leave", ("n", "no"), "action"),
    Key("action", "left,right", "other_answer", ("← →", "the other answer"), "action"),
    Key("action", "K", "end_session", ("K", "end the session instead"), "action"),
    Key("action", "escape,q,ctrl+c", "back", ("esc", "back"), "action"),
    Key("time", "q,t", "back", ("esc", "now"), "time"),
    Key("app", "q", "quit", ("q", "quit"), "main",
        ("q  ctrl+c", "quit; ctrl+c, which copies elsewhere, does when pressed twice")),
    Key("app", "ctrl+c", "quit_if_meant"),
    Key("app", "ctrl+z", "suspend_process",
        help=("ctrl+z", "leave it in the background of the shell; fg brings it back")),
)
# fmt: on
"""In the order of the footers and the help page."""


def bindings(screen: str) -> list[tuple[str, str]]:
    """Return the keys and actions that Textual binds on a screen."""
    return [(key.keys, key.action) for key in KEYS if key.screen == screen and key.keys]


def is_live(action: str) -> bool:
    """Whether an action controls the readings."""
    return any(key.live and key.action.startswith(action) for key in KEYS)
