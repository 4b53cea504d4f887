"""The owner of a frame's code: the application, a library, or plumbing.

Code outside the standard library and outside site-packages belongs to the project. But
an application may itself be installed into site-packages. So a whole stack is needed to
decide which frames are the application's own (``application_frames``):

- the frames of the project, if there are any;
- otherwise those of the outermost installed package that is not a known database
  library, framework or server. Outermost, because an application calls its helpers;
- the module level of the program that was started (a console script, ``python -c``, two
  lines that import an application and call it) only if there is no other frame. It is
  on the stack as long as the program runs, and does not distinguish two stacks.

The decision is made from file paths only, so that a viewer on another machine comes to
the same result as the process itself.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from enum import IntEnum
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

from poolwatch.runtime.installation import PACKAGE
from poolwatch.stacks.packages import DATABASE, KNOWN, RUNNERS


class CodeOwner(IntEnum):
    """The owner of a frame's code, from the least to the most likely call site."""

    PLUMBING = 0
    """poolwatch, the standard library, database libraries, web and task frameworks."""
    PACKAGE = 1
    """Anything else that is installed: a third-party library, or an application
    that was installed as a package."""
    USER = 2
    """Code that is not installed: the user's project."""


FileFunction = tuple[str, str]
"""File and function of a frame."""

PROJECT = ""
"""The home (see ``home_of``) of code that is not installed."""

_INSTALLED = re.compile(
    r".*[\\/](?:(?:site|dist)-packages|\.bootstrap|[^\\/]+\.(?:whl|egg)"
    r"|[^\\/]+\.pyz(?=[\\/]_bootstrap[\\/]))[\\/]"
)
"""Where packages are installed; the last such directory of a path counts."""
_STANDARD_LIBRARY = re.compile(
    r"[\\/]lib(?:64)?[\\/]python\d(?:\.\d+)?t?[\\/]", re.IGNORECASE
)
"""The standard library of another machine, recognised by the path."""
_GENERATED = (
    "<frozen", "<attrs", "<decorator", "<template", "<__array", "<sqlalchemy"
)  # fmt: skip
_OURS = str(PACKAGE) + os.sep
_DEMO = str(PACKAGE / "commands" / "demo" / "app") + os.sep

_LAUNCHERS = frozenset({("manage.py", "main"), ("__main__.py", "boot")})
"""Functions that Django generates in every project, and pex in every file."""

_known_applications: set[str] = set()
"""Installed packages that were the application in some stack."""
_fileless_functions: set[str] = set()
"""Functions without a file that do not belong to a library."""
_MAX_FILELESS = 256


@cache
def _standard_library() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[key] + os.sep for key in ("stdlib", "platstdlib")})


@lru_cache(maxsize=4096)
def is_ours(file: str) -> bool:
    """Whether a file belongs to poolwatch, except its demo application."""
    return file.startswith(_OURS) and not file.startswith(_DEMO)


# -- a whole stack ---------------------------------------------------------------------


def application_frames(
    stack: Sequence[FileFunction],
    *,
    site: FileFunction | None = None,
    launcher: bool = False,
) -> list[int]:
    """The positions of the application's own frames in a stack, innermost first.

    With ``site``, the frames of the project and of the package of that call site; then
    the stack may lack its outer frames. With ``launcher``, the frames that started the
    program are included.
    """
    homes = [home_of(*place) for place in stack]
    start = _launcher_start(stack, homes)
    known = home_of(*site) if site is not None else None
    home = _home_of_application(stack, homes, start) if known is None else known
    wanted = {home} if known is None else {home, PROJECT}
    own = [at for at, each in enumerate(homes) if each is not None]
    starting = [at for at in own if at >= start]
    inner = [at for at in own if at < start and homes[at] in wanted]
    if not inner and known is None:
        return [at for at in starting if homes[at] in wanted] or starting
    return inner + starting if launcher else inner


def _home_of_application(
    stack: Sequence[FileFunction], homes: Sequence[str | None], start: int
) -> str | None:
    """The home of the application's code; None if only its launcher is known."""
    if PROJECT in homes[:start]:
        return PROJECT
    packages = [home for home in homes[:start] if home]
    for home, (file, _) in zip(homes[start:], stack[start:], strict=True):
        if home and _is_in_package(file):  # ``python -m`` of a package
            packages.append(home)
    if packages:
        _known_applications.add(packages[-1])
    return packages[-1] if packages else None


def _launcher_start(stack: Sequence[FileFunction], homes: Sequence[str | None]) -> int:
    """The position of the first of the outer frames that only start the program.

    A module that is being imported does not count: it ends with the import.
    """
    start = len(stack)
    for at in reversed(range(len(stack))):
        file, function = stack[at]
        if homes[at] is None:
            if not _runs_programs(file):
                break
        elif function == "<module>" or (_file_name(file), function) in _LAUNCHERS:
            start = at
        else:
            break
    return start


@lru_cache(maxsize=2048)
def _runs_programs(file: str) -> bool:
    """Whether the file belongs to the standard library (not the importer) or a tool."""
    if file.startswith("<frozen importlib"):
        return False
    within = _below_installation(file)
    return not within or _top(within) in RUNNERS


# -- one frame -------------------------------------------------------------------------


def home_of(file: str, function: str) -> str | None:
    """The installed package that a frame belongs to; None for plumbing.

    ``PROJECT`` for code that is not installed. A function compiled from a string
    belongs to a library (SQLAlchemy 2.0 has such wrappers), unless
    ``note_fileless_function`` was called for it.
    """
    if (
        file == "<string>"
        and function != "<module>"
        and function not in _fileless_functions
    ):
        return None
    return _home(file)


@lru_cache(maxsize=2048)
def library_of(file: str) -> str:
    """The installed package or standard-library module of a file; empty if neither.

    ``asyncio`` for a file of the standard library's asyncio, but not for one of the
    project in a directory of that name.
    """
    return _top(_below_installation(file) or _below_standard_library(file))


def note_fileless_function(function: str, module: object) -> None:
    """Note a function without a file, as ``python -c`` or ``exec`` creates them."""
    known = (
        type(module) is str and code_owner_of("<string>", module) is CodeOwner.PLUMBING
    )
    if not known and len(_fileless_functions) < _MAX_FILELESS:
        _fileless_functions.add(function)


@lru_cache(maxsize=4096)
def _home(file: str) -> str | None:
    if file.startswith(_OURS):
        return PROJECT if file.startswith(_DEMO) else None
    if file.startswith("<"):
        return None if file.startswith(_GENERATED) else PROJECT
    within = _below_installation(file)
    if within:
        return None if _top(within) in KNOWN else _package(within)
    if _below_standard_library(file):
        return None
    return None if _is_vendored_library(file) else PROJECT


@lru_cache(maxsize=2048)
def code_owner_of(file: str, module: object) -> CodeOwner:
    """The owner of a file, by its path and its module's ``__name__``."""
    if file.startswith("<") and not file.startswith(_GENERATED):
        return _owner_of_generated_code(
            module.partition(".")[0] if isinstance(module, str) else ""
        )
    return _owner(_home(file))


def is_application_module(file: str, module: object) -> bool:
    """Whether a module belongs to the project, or to an installed application."""
    return (
        code_owner_of(file, module) is CodeOwner.USER
        or _home(file) in _known_applications
    )


def _owner(home: str | None) -> CodeOwner:
    if home is None:
        return CodeOwner.PLUMBING
    return CodeOwner.PACKAGE if home else CodeOwner.USER


def _owner_of_generated_code(package: str) -> CodeOwner:
    """The owner of code without a file: from a prompt, ``python -c``, or a library."""
    if package in KNOWN or package in sys.stdlib_module_names:
        return CodeOwner.PLUMBING
    home = _file_of_loaded_module(package)
    if package and package != "__main__" and home is not None:
        return _owner(_home(home))
    return CodeOwner.USER


def _below_installation(file: str) -> str:
    """The rest of a path below the directory where packages are installed."""
    installed = _INSTALLED.match(file)
    return file[installed.end() :] if installed else ""


def _below_standard_library(file: str) -> str:
    """The rest of a path below the standard library, of this Python or another."""
    for directory in _standard_library():
        if file.startswith(directory):
            return file[len(directory) :]
    elsewhere = _STANDARD_LIBRARY.search(file)
    return file[elsewhere.end() :] if elsewhere else ""


def _is_in_package(file: str) -> bool:
    return any(separator in _below_installation(file) for separator in "/\\")


def _file_name(file: str) -> str:
    return re.split(r"[\\/]", file)[-1]


def _top(within: str) -> str:
    return re.split(r"[\\/]", within)[0].removesuffix(".py")


def _package(within: str) -> str:
    """The outermost package with code; namespace packages (``google``) do not count."""
    first, *further = re.split(r"[\\/]", within.removesuffix(".py"))
    name = first
    for part in further[:-1]:
        if name not in sys.modules or _file_of_loaded_module(name) is not None:
            return name
        name += f".{part}"
    return name


def _is_vendored_library(file: str) -> bool:
    """Whether a file belongs to a copy of a database library beside the application.

    Such copies occur in zip files, in serverless functions, and after ``pip install
    --target``.
    """
    for name in DATABASE.intersection(re.split(r"[\\/]", file)):
        home = _file_of_loaded_module(name)
        if home is not None and file.startswith(str(Path(home).parent) + os.sep):
            return Path(home).parent.name == name
    return False


def file_of(module: object) -> str | None:
    """The file of a module. Its ``__getattr__`` is not called."""
    if not issubclass(type(module), ModuleType):
        return None
    file = ModuleType.__getattribute__(module, "__dict__").get("__file__")
    return file if type(file) is str else None


def _file_of_loaded_module(module: str) -> str | None:
    return file_of(sys.modules.get(module))
