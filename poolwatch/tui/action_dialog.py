"""The question before a guarded action, and what was observed after it.

The backend is read afresh when the dialogue opens. Both that and the action run on
threads of their own: no key waits for PostgreSQL.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button

from poolwatch.errors import PoolwatchError
from poolwatch.model.actions import Action, Actions, Chosen, Outcome, Target, Waiter
from poolwatch.text.format import duration, one_line, plural
from poolwatch.tui.draw.line import BLANK, Line, labelled, rule, wrap
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.keys import bindings
from poolwatch.tui.panels.footer import footer

TALL = 30
"""Minimum height for more than one line of a fact."""
WIDTH = 100
"""Cells of the dialogue on a wide terminal."""
_EDGES = 4, 3
"""Columns left and right of the text; lines below it: a blank one, buttons, keys."""
_MAX_NAMED = 3
_TITLES: dict[Action, tuple[str, str]] = {
    "cancel": ("CANCEL THE STATEMENT", "pg_cancel_backend"),
    "terminate": ("END THE SESSION", "pg_terminate_backend"),
}
_YES: dict[Action, str] = {"cancel": " Yes, cancel it ", "terminate": " Yes, end it "}

State = Literal["reading", "question", "useless", "acting", "over"]


class ActionDialog(ModalScreen[Outcome | None]):
    """Asks before a statement is cancelled or a session ended; No has the focus.

    Its result is what was observed, or None if nothing was done.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("action")]
    FOOTER = "action"
    AUTO_FOCUS = "#no"

    def __init__(self, action: Action, chosen: Chosen, actions: Actions) -> None:
        super().__init__(id="action")
        self._action: Action = action
        self._chosen = chosen
        self._actions = actions
        self._state: State = "reading"
        self._target: Target | None = None
        self._read_at = ""
        self._outcome: Outcome | None = None
        self._fits = False
        """Whether the whole question is on the screen."""

    def compose(self) -> ComposeResult:
        """The text, the two answers, and the keys."""
        with Vertical(id="dialog"):
            yield Painted(id="question")
            with Horizontal(id="answers"):
                yield Button(" No ", id="no", compact=True)
                yield Button("", id="yes", compact=True)
            yield Painted(id="keys")

    def on_mount(self) -> None:
        """Read the backend."""
        self._read()

    def on_resize(self) -> None:
        """Check whether the question fits."""
        self._draw()

    # -- keys ----------------------------------------------------------------------

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the answer of the mouse, or of Enter."""
        if event.button.id == "yes":
            self.action_confirm()
        else:
            self.action_back()

    def action_confirm(self) -> None:
        """Take the action, if the question is asked and fits on the screen."""
        target = self._target
        if self._state != "question" or target is None or not self._fits:
            return
        self._enter("acting")
        action = self._action
        self._start(lambda: self._actions.act(action, target), self._observed)

    def action_leave(self) -> None:
        """Answer No."""
        self.action_back()

    def action_back(self) -> None:
        """Leave, unless the action is under way: its result comes first."""
        if self._state != "acting":
            self.dismiss(self._outcome)

    def action_end_session(self) -> None:
        """Ask about the session where a cancelled statement does not help."""
        if self._can_end_session():
            self._action = "terminate"
            self._read()

    def action_other_answer(self) -> None:
        """Move the focus."""
        self.focus_next(Button)

    def _can_end_session(self) -> bool:
        helped = self._outcome is not None and self._outcome.done
        over = self._state in ("useless", "over") and not helped
        return over and self._action == "cancel" and self._target is not None

    # -- PostgreSQL ----------------------------------------------------------------

    def _read(self) -> None:
        self._target = None
        self._enter("reading")
        self._start(lambda: self._actions.look(self._chosen), self._seen)

    def _start(
        self,
        job: Callable[[], Target | Outcome],
        on_result: Callable[[Target | Outcome], None],
    ) -> None:
        """Run a job on a thread; an error becomes an outcome."""
        app = self.app  # the dialogue may be closed when the job ends

        def work() -> None:
            try:
                result = job()
            except PoolwatchError as error:
                result = Outcome(False, str(error))
            except Exception as error:  # noqa: BLE001 - must not end the app
                result = Outcome(False, f"it failed: {type(error).__name__}")
            app.call_later(on_result, result)

        threading.Thread(target=work, name="poolwatch-ask", daemon=True).start()

    def _seen(self, result: Target | Outcome) -> None:
        if isinstance(result, Outcome):
            self._observed(result)
            return
        self._target, self._read_at = result, time.strftime("%H:%M:%S")
        useless = self._action == "cancel" and not result.is_running
        self._enter("useless" if useless else "question")

    def _observed(self, result: Target | Outcome) -> None:
        if isinstance(result, Outcome):
            self._outcome = result
            self._enter("over")

    # -- drawing -------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self._state = state
        self._draw()

    def _draw(self) -> None:
        if not (self.is_attached and self.query("#keys")):
            return  # it is not composed yet, or closed
        width, height = self.app.size
        box = max(min(width - 2, WIDTH), 8)
        cells, room = box - _EDGES[0], max(height - _EDGES[1], 1)
        lines = self._lines(cells, tight=height < TALL)
        self._fits = len(lines) <= room and cells >= 30
        if self._state == "question" and not self._fits:
            small = "the terminal is too small to show what would happen"
            lines = [((part, "warn"),) for part in wrap(small, cells)]
        self.query_one("#dialog").styles.width = box
        self.query_one("#question", Painted).paint(lines[:room], fixed=True)
        self._draw_answers(cells)

    def _draw_answers(self, cells: int) -> None:
        asks = self._state == "question" and self._fits
        no, yes = self.query_one("#no", Button), self.query_one("#yes", Button)
        no.label = " No " if asks else " Close "
        no.display = self._state != "acting"
        yes.label, yes.display = _YES[self._action], asks
        if not asks:
            no.focus()
        shown = {
            "confirm": asks,
            "leave": asks,
            "other_answer": asks,
            "end_session": self._can_end_session(),
            "back": self._state != "acting",
        }
        hidden = {name for name, is_shown in shown.items() if not is_shown}
        keys = footer(self.FOOTER, cells, hidden=hidden)
        self.query_one("#keys", Painted).paint([keys], fixed=True)

    def _lines(self, cells: int, *, tight: bool) -> list[Line]:
        title, function = _TITLES[self._action]
        pid = self._chosen.pid
        head = rule(
            ((title, "title"), (f" of backend {pid}", "strong")),
            ((function, "muted"),),
            cells + 2,
        )
        facts = session_lines(self._chosen, self._target, cells, tight=tight)
        return [head[1:], BLANK, *facts, BLANK, *self._ending(cells)]

    def _ending(self, cells: int) -> list[Line]:
        """Draw what is below the facts: the question, or how far the action has got."""
        if self._state == "reading":
            return [(("reading the backend …", "muted"),)]
        if self._state == "acting":
            return [(("PostgreSQL has been told; watching what follows …", "muted"),)]
        if self._state == "over" and self._outcome is not None:
            done = self._outcome.done
            sign, ink = ("✓ ", "good") if done else ("◆ ", "warn")
            return _marked(sign, ink, self._outcome.text, cells)
        if self._target is None:
            return []
        lines: list[Line] = []
        for ink, text in _consequences(self._action, self._target):
            lines += _marked("▸ ", ink, text, cells)
        read = f"as read at {self._read_at}; nothing is done if it has changed by then"
        return [*lines, ((read, "faint"),)]


def session_lines(
    chosen: Chosen, target: Target | None, cells: int, *, tight: bool
) -> list[Line]:
    """Draw whose session it is, and what it does; ``tight``: in few lines."""
    few, more = (1, 1) if tight else (2, 6)
    client = "" if target is None else f" at {target.client or 'a Unix socket'}"
    program = (target and target.application) or "without a name"
    stranger = f"not instrumented: application {program}{client}"
    facts = [("process", chosen.process or stranger, few)]
    if chosen.site is not None:
        facts.append(("call site", chosen.site, 2))
    if target is not None:
        row = target.row
        whose = f"role {target.user or '?'}, database {target.database or '-'}{client}"
        state = f"{row.state or '?'} for {duration(row.state_age_s)}"
        if row.xact_age_s is not None:
            state += f", transaction open for {duration(row.xact_age_s)}"
        if row.wait_event:
            state += f", waits: {row.wait_event}"
        query = one_line(row.query or "not known", 2000)
        name = "statement" if target.is_running else "ran last"
        facts += [("session", whose, few), ("state", state, few), (name, query, more)]
    lines: list[Line] = []
    for name, text, limit in facts:
        ink = "strong" if name == "call site" else "text"
        lines += labelled(f"{name:<11}", text, cells, limit, ink=ink)
    return lines


def _consequences(action: Action, target: Target) -> list[tuple[str, str]]:
    """Return what the action would do: sentences, each with its ink."""
    row, chosen = target.row, target.chosen
    age = duration(row.xact_age_s)
    if action == "cancel" and not target.is_running:
        text = f"The backend runs no statement ({row.state or 'idle'}): a cancel would "
        text += "do nothing. K asks about ending the session instead."
        return [("warn", text)]
    if action == "cancel":
        what = (
            "Only the running statement ends, with an error in the application. Its "
            f"transaction of {age} is then aborted: what it has done so far is undone "
            "when the application rolls it back."
        )
    elif row.xact_age_s is None:
        what = "The session ends. It has no open transaction: nothing is rolled back."
    else:
        running = "The running statement ends unfinished; its"
        if not target.is_running:
            running = "Its"
        what = (
            f"The session ends. {running} open transaction of {age} is rolled back: "
            "its statements so far are undone."
        )
    found = [("bad", what)]
    if row.blocked_by:
        names = _names(row.blocked_by, chosen.sites)
        found.append(("warn", f"It waits itself, behind {names}: that is the cause."))
    return [*found, ("good" if target.frees else "muted", _freed(target))]


def _freed(target: Target) -> str:
    count, others = len(target.frees), len(target.behind_others)
    words = f"Nobody waits for its locks{' alone' if others else ''}."
    if count:
        named = _waiting(target.frees, target.chosen)
        words = f"{plural(count, 'session')} behind it can go on: {named}."
    if others:
        words += f" {plural(others, 'more session')} behind it "
        words += "waits for others too." if others == 1 else "wait for others too."
    return words


def _waiting(waiters: Sequence[Waiter], chosen: Chosen) -> str:
    """The call sites of sessions, each once with its number."""
    counts = Counter(
        chosen.sites.get(pid) or f"{application or 'a session'} (pid {pid})"
        for pid, application, _ in waiters
    )
    named = [
        f"{count} at {name}" if count > 1 else name
        for name, count in counts.most_common(_MAX_NAMED)
    ]
    rest = len(counts) - _MAX_NAMED
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _names(pids: Sequence[int], sites: Mapping[int, str]) -> str:
    named = [
        f"pid {pid} ({sites[pid]})" if pid in sites else f"pid {pid}"
        for pid in pids[:_MAX_NAMED]
    ]
    return " and ".join(named) + (" …" if len(pids) > _MAX_NAMED else "")


def _marked(sign: str, ink: str, text: str, cells: int) -> list[Line]:
    """Draw a sentence with a sign before its first line."""
    text_ink = "strong" if ink == "bad" else "text"
    return labelled(sign, text, cells, 3, label_ink=ink, ink=text_ink)
