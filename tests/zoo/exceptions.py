"""Faults in which a stored exception keeps the connection."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import threading
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from zoo.app import PING
from zoo.registry import fault

_errors: list[BaseException] = []


def charge(engine: Engine, number: int) -> None:
    session = Session(engine)
    session.execute(PING)  # site: error_list, error_logged, error_group
    if number % 2:
        raise ValueError(f"account {number} is closed")
    session.close()


@fault("leaked.abandoned", at="error_list")
def error_kept_for_the_summary(zoo: Any) -> None:
    """Errors are collected for a summary, their tracebacks with them."""

    def batch() -> None:
        for number in range(4):
            try:
                charge(zoo.engine, number)
            except ValueError as error:
                _errors.append(error)

    batch()
    zoo.go_on()


@fault("leaked.abandoned", at="error_logged")
def error_in_a_log_buffer(zoo: Any) -> None:
    """A log handler buffers its records, exc_info and all."""
    log = logging.getLogger("app")
    log.propagate = False
    log.addHandler(logging.handlers.MemoryHandler(100, logging.CRITICAL))

    def batch() -> None:
        try:
            charge(zoo.engine, 1)
        except ValueError:
            log.exception("cannot charge")

    batch()
    zoo.go_on()


@fault("leaked.abandoned", at="error_group")
def error_group_kept(zoo: Any) -> None:
    """An ExceptionGroup of the whole batch is kept for a retry."""

    def batch() -> None:
        errors = []
        for number in (1, 3):
            try:
                charge(zoo.engine, number)
            except ValueError as error:
                errors.append(error)
        _errors.append(ExceptionGroup("batch", errors))

    batch()
    zoo.go_on()


def sync_customers(engine: Engine) -> None:
    connection = engine.connect()  # site: thread_died
    connection.execute(PING)
    raise ConnectionError("the other side has gone")


@fault("leaked.orphaned", at="thread_died", long_after=30)
def error_of_a_thread_kept(zoo: Any) -> None:
    """threading.excepthook stores what killed the thread."""
    threading.excepthook = lambda args: _errors.append(args.exc_value)  # type: ignore[assignment,arg-type,return-value]
    thread = threading.Thread(target=sync_customers, args=(zoo.engine,))
    thread.start()
    thread.join()
    zoo.go_on()


def debug(engine: Engine) -> None:
    connection = engine.connect()  # site: last_value
    connection.execute(PING)
    raise KeyError("colour")


@fault("leaked.abandoned", at="last_value")
def error_in_sys_last_value(zoo: Any) -> None:
    """An interactive console keeps the last error in sys.last_value."""

    def prompt() -> None:
        try:
            debug(zoo.engine)
        except KeyError as error:
            sys.last_value = error

    prompt()
    zoo.go_on()


_states: list[Any] = []


def inspect_later(engine: Engine) -> None:
    connection = engine.connect()  # site: frame_kept
    connection.execute(PING)
    _states.append(sys._getframe())


@fault("leaked.abandoned", at="frame_kept")
def frame_kept_by_a_debugger(zoo: Any) -> None:
    """A debugging aid keeps the frame itself."""
    inspect_later(zoo.engine)
    zoo.go_on()
