"""What poolwatch raises in its own programs; each error knows its exit code.

Nothing here is ever raised into an instrumented application, except TypeError and
ValueError for wrong arguments of a call that the application itself wrote.
"""

from __future__ import annotations


class PoolwatchError(Exception):
    """Base of all: one sentence that says what is wrong and what to do."""

    exit_code = 2


class UsageError(PoolwatchError):
    """An option, DSN or directory that cannot be used."""


class MissingExtraError(PoolwatchError):
    """A feature needs an extra that is not installed."""

    def __init__(self, need: str, extra: str, otherwise: str = "") -> None:
        install = f"python -m pip install 'poolwatch[{extra}]'"
        super().__init__(f"{need}; install it with: {install}{otherwise}")


class NoProcessError(PoolwatchError):
    """No instrumented process was found."""

    exit_code = 3


class ForbiddenError(PoolwatchError):
    """The directory or the socket belongs to somebody else."""

    exit_code = 4


class UnreachableError(PoolwatchError):
    """A socket is there but its process does not give a usable answer."""

    exit_code = 3


class SilentError(UnreachableError):
    """A process took the question and did not answer in time."""


class ServerViewError(PoolwatchError):
    """PostgreSQL could not be read; the rest goes on without it."""


class PoolerError(ServerViewError):
    """A pooler is in between: its server connections are those of the application."""

    def __init__(self) -> None:
        super().__init__(
            "the connection goes through a pooler such as PgBouncer, which hides whose "
            "session is whose"
        )


class RefusedError(PoolwatchError):
    """An action whose target is not proven to be the one that the user has seen."""


NO_ANSWER = "no answer"
"""Stands for the error message of a server that sends none."""


class ServerDownError(ServerViewError):
    """PostgreSQL does not answer at all: stopped, starting, hung or out of reach."""

    def __init__(self, sentence: str, words: str = NO_ANSWER) -> None:
        super().__init__(sentence)
        self.words = words
        """The last error message of the server or its driver, or NO_ANSWER."""
