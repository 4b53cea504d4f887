"""What all views have: rows, columns, order, filter, and where a row leads."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple

from poolwatch.diagnosis.sessions import Session, servers_by_pool
from poolwatch.model import FindingKind, Frame, Process, ServerStatus
from poolwatch.text.format import duration, neutral, one_line, place, plural
from poolwatch.tui.draw.line import Line, Run, rule
from poolwatch.tui.draw.table import MARGIN, Column, T, Table, process_cell
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import Fields, quoted
from poolwatch.tui.state.rows import Row, process_key
from poolwatch.tui.state.session_rows import SessionRow
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.state.wait_rows import WaitGroup

SELECTED: Run = ("▌ ", "accent")
AS_LAST_SEEN = "~"
"""In the margin of a row whose process does not answer."""


class Drill(NamedTuple):
    """Enter leads to another view, filtered; escape leads back."""

    view: str
    filter: str
    each: bool = False
    """Whether the rows there are shown one by one, even if they are usually merged."""


class Detail(NamedTuple):
    """Enter leads to the page of one hold, wait or session."""

    row: Row | WaitGroup | SessionRow


class SessionOnServer(NamedTuple):
    """A session, and the server that it is on if that is known."""

    session: Session
    server: ServerStatus | None

    @classmethod
    def of_hold(cls, row: Row) -> SessionOnServer:
        """Return the session of a hold."""
        hold, process = row.hold, row.process
        server = servers_by_pool(process).get(hold.pool)
        return cls(Session(hold.backend_pid or 0, process, hold=hold), server)


class Sought(NamedTuple):
    """What identifies the incidents of a finding."""

    kind: FindingKind
    pool: str | None
    """Name of the pool; None for those of any pool."""
    sites: tuple[Frame, ...]
    """Call sites, one of which an incident has; empty for those of any site."""


class View(Generic[T]):
    """One table of the dashboard. A row type ``T`` has a ``key`` that identifies it."""

    name: ClassVar[str]
    """In the tab line and the title, and the name of its state on the board."""
    short: ClassVar[str]
    """In the tab line of a narrow terminal."""
    columns: ClassVar[tuple[Column[Any], ...]]
    order: ClassVar[str] = "by harm"
    """The order without a sort column."""
    more_fields: ClassVar[tuple[str, ...]] = ()
    """The names of fields()."""
    has_labels: ClassVar[bool] = False
    """Whether rows have labels, which the filter treats as fields."""
    all_at_first: ClassVar[bool] = False
    """Whether all rows are shown unless the user chooses."""
    summaries: ClassVar[frozenset[Hashable]] = frozenset()
    """Keys of rows that stand for several others."""

    # -- what a view defines -------------------------------------------------------

    def rows(self, board: Board) -> list[T]:
        """Return every row, the most harmful first."""
        raise NotImplementedError

    def count(self, board: Board) -> Run:
        """Return the number in the tab line, and its ink: the counts are the alarm."""
        raise NotImplementedError

    def merge(self, rows: Sequence[T]) -> list[T]:
        """Merge equal rows; they are in the order of rows()."""
        return list(rows)

    def fold(self, board: Board, rows: list[T]) -> list[T]:
        """Fold rows that matter little into one row at the end."""
        return rows

    def members(self, row: T) -> Sequence[Hashable]:
        """Return what identifies the rows that a row stands for, itself if not merged.

        A row stays selected when it is merged, or when what it stands for is not.
        """
        return (row.key,)

    def merges(self, board: Board) -> bool:
        """Whether equal rows are merged unless the user chooses."""
        return False

    def labels(self, row: T) -> Mapping[str, str]:
        """Return the labels that the filter can ask for, like fields."""
        return {}

    def fields(self, row: T) -> Mapping[str, Sequence[Any]]:
        """Return fields for the filter that no column has, or has in one form only."""
        return {}

    def with_roots(self, board: Board, kept: list[T], rows: Sequence[T]) -> list[T]:
        """Return the rows that the filter kept, with the roots that block them."""
        return kept

    def hidden_columns(self, board: Board) -> set[str]:
        """Return the keys of columns that would say the same in every row."""
        return set()

    def size(self, board: Board) -> str:
        """Return the number of the tab line for the title; some views add words."""
        return self.count(board)[0]

    def title(self, board: Board) -> Line:
        """Return a summary that follows name and count in the title."""
        return ()

    def empty(self, board: Board) -> str:
        """Return the sentence that stands in place of rows if there are none."""
        return "nothing to show"

    def owner(self, row: T) -> Process | None:
        """Return the process whose answer a row is from."""
        return None

    def is_dim(self, board: Board, row: T) -> bool:
        """Whether a row is drawn without colour, because it is over."""
        return False

    def pane(self, board: Board, row: T, cells: int, height: int) -> list[Line]:
        """Return what stands below the table about the selected row."""
        return []

    def leads_to(self, board: Board, row: T) -> Drill | Detail | None:
        """Return where Enter leads."""
        return None

    def place(self, row: T) -> Frame | None:
        """Return the place in the source that ``y`` copies."""
        return None

    def sought(self, row: T) -> Sought | None:
        """Return what identifies the finding of a row, if it is one."""
        return None

    def issue(self, board: Board, row: T) -> str | None:
        """Return the text that ``Y`` copies, in Markdown."""
        return None

    def session(self, board: Board, row: T) -> SessionOnServer | None:
        """Return the session that an action on the row concerns, with its server."""
        return None

    # -- what all views share ------------------------------------------------------

    def state(self, board: Board) -> TableState:
        """Return the view's state on the board."""
        return board.tables.setdefault(self.name, TableState())

    def is_merged(self, board: Board) -> bool:
        """Whether equal rows are merged now."""
        chosen = self.state(board).merged
        return self.merges(board) if chosen is None else chosen

    def shows_all(self, board: Board) -> bool:
        """Whether rows that matter little, such as short holds, are shown."""
        chosen = self.state(board).show_all
        return self.all_at_first if chosen is None else chosen

    def arrange(self, board: Board, now: float) -> TableState:
        """Filter, merge and sort the rows if anything has changed; select a row."""
        state = self.state(board)
        merged = self.is_merged(board)
        shows_all = self.shows_all(board)
        order = state.sort, state.reverse
        wanted = board.revision, board.filter.text, shows_all, merged, *order
        if wanted != state.arranged_for:
            rows = self.rows(board)
            kept = rows
            if board.filter.tests:
                kept = [row for row in rows if board.filter(self._fields_of(row))]
                kept = self.with_roots(board, kept, rows)
            state.total, state.hidden = len(rows), len(rows) - len(kept)
            shown = self._sorted(self.merge(kept) if merged else kept, state)
            if not merged and not shows_all and order == (None, False):
                shown = self.fold(board, shown)
            state.rows = shown
            state.keys = frozenset([key for row in rows for key in self.members(row)])
            state.keys |= {row.key for row in shown}
            state.arranged_for = wanted
            self._select_same(state)
        selection, keys = state.selection, state.keys
        row: T | None = selection.row
        if row is not None and row.key not in keys:
            merged_only = not keys.isdisjoint(self.members(row))
            if merged_only or not self._ends(board, row):
                keys |= {row.key}
        selection.follow(state.rows, keys, now, is_past=board.fixed is not None)
        return state

    def _select_same(self, state: TableState) -> None:
        """Select the row that now stands for what the selected one stood for."""
        row: T | None = state.selection.row
        if row is None or any(each.key == row.key for each in state.rows):
            return
        members = list(self.members(row))
        if len(members) == 1:
            state.within = members[0]
        elif state.within in members:
            members.insert(0, state.within)
        rows = {key: each.key for each in state.rows for key in self.members(each)}
        keys = (rows[key] for key in members if key in rows)
        state.selection.key = next(keys, state.selection.key)

    def _ends(self, board: Board, row: T) -> bool:
        """Whether a row that is gone leaves a tombstone: the filter must show it."""
        return row.key not in self.summaries and board.filter(self._fields_of(row))

    def _sorted(self, rows: list[T], state: TableState) -> list[T]:
        value = next((c.value for c in self.columns if c.key == state.sort), None)
        if value is not None:
            known = [row for row in rows if value(row) is not None]
            unknown = [row for row in rows if value(row) is None]
            # numbers: the largest first; texts: from A to Z
            numbers = bool(known) and not isinstance(value(known[0]), str)
            known.sort(key=value, reverse=numbers != state.reverse)
            return known + unknown
        return rows[::-1] if state.reverse else rows

    def _fields_of(self, row: T) -> Fields:
        return _RowFields(self, row)

    def known_fields(self) -> set[str]:
        """Return the names of the fields that the filter knows here."""
        named = {column.field for column in self.columns if column.field}
        return named | set(self.more_fields)

    def layout(self, board: Board, cells: int) -> Table[T]:
        """Return the columns that fit into a width."""
        return Table(self.columns, cells, self.hidden_columns(board))

    def title_line(self, board: Board, cells: int) -> Line:
        """Draw name, count, filter and order; the position at the right edge."""
        state = self.state(board)
        size = self.size(board)
        title: list[Run] = [(self.name.upper(), "title"), (f" {size}", "strong")]
        title += [*self.title(board), *self._last_seen(board)]
        if board.filter.text:
            hidden = f"  {plural(state.hidden, 'row')} hidden"
            text = one_line(board.filter.text, 60)
            title += [("  filter ", "muted"), (text, "accent")]
            title += [(hidden, "warn" if state.hidden else "muted")]
        selection = state.selection
        count = len(state.rows)
        where = f"row {min(selection.at + 1, count)} of {count}" if count else ""
        order = f"by {state.sort}" if state.sort else self.order
        if self.is_merged(board):
            order = f"merged, {order}"
        note: Line = ((order, "muted"), (f"  {where}", "muted"))
        return rule(tuple(title), note, cells)

    def line(
        self, board: Board, table: Table[T], row: T, *, selected: bool, dim: bool
    ) -> Line:
        """Draw one row; the selection is recognizable without colour."""
        margin = SELECTED if selected else MARGIN
        if self._silent_s(board, row) is not None:
            margin = margin[0][0] + AS_LAST_SEEN, margin[1]
            dim = True
        return table.line(row, margin=margin, dim=dim or self.is_dim(board, row))

    def _silent_s(self, board: Board, row: T) -> float | None:
        """Return the age of a row whose process does not answer."""
        owner = self.owner(row)
        return None if owner is None else board.last_seen(process_key(owner))

    def _last_seen(self, board: Board) -> Line:
        """Count the rows whose process does not answer, and say how old they are."""
        if not board.silent and (board.last is None or board.last.alive):
            return ()
        rows = self.state(board).rows
        ages = [age for row in rows if (age := self._silent_s(board, row)) is not None]
        if not ages:
            return ()
        text = f"  {AS_LAST_SEEN} {len(ages)} as last seen {duration(min(ages))} ago"
        return ((text, "warn"),)


def site_values(site: Frame | None) -> list[str]:
    """Return the forms in which a filter may name a place in the source."""
    if site is None:
        return [place(None)]  # as the tables show it
    return [place(site, 99), place(site, 2), place(site, 1), neutral(site.function)]


def same_place(
    board: Board, site: Frame | None, caller: Frame | None, pool: str
) -> str:
    """Return the filter for one call site of one pool, and its caller if known."""
    words = [f"site={quoted(place(site, 99))}"]
    if caller is not None:
        words.append(f"caller={quoted(place(caller, 99))}")
    if board.several_pools:
        words.append(f"pool={quoted(pool)}")
    return " ".join(words)


def of_process(process: Process) -> str:
    """Return the filter for one process: a pid alone may be that of a backend, too."""
    return f"process={quoted(process_cell(process)[0])}"


class _RowFields(Generic[T]):
    """The fields of one row, each computed when a test asks for it."""

    def __init__(self, view: View[T], row: T) -> None:
        self._view = view
        self._row = row

    def values(self, name: str) -> Sequence[Any] | None:
        """Return the values of a field or label; None if the view has no such field."""
        labels = self._view.labels(self._row)
        known = [value for key, value in labels.items() if key.casefold() == name]
        found: Sequence[Any] | None = self._view.fields(self._row).get(name)
        if found is not None:
            return [*found, *known]
        for column in self._view.columns:
            if column.field == name and column.value is not None:
                return [column.value(self._row), *known]
        return known if known or self._view.has_labels else None

    def texts(self) -> Iterator[str]:
        """Return every text of the row."""
        for column in self._view.columns:
            if column.field and column.value is not None:
                yield from _text(column.value(self._row))
        for values in self._view.fields(self._row).values():
            for value in values:
                yield from _text(value)
        yield from self._view.labels(self._row).values()


def _text(value: Any) -> Iterator[str]:
    """Numbers are searched if they are whole, such as a pid."""
    if isinstance(value, str | int):
        yield str(value)
