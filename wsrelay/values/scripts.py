"""The folders of users' scripts: each has modules of its own, as with `python script.py`.

A template loads scripts from several folders, and what one of them imports is in `sys.modules` for
all: the `utils.py` of one folder would be used by the others, too. So only one folder at a time is
*entered*: it comes first on `sys.path`, and the modules of the previous folder are put aside, as
are modules from elsewhere that have the name of a file in the new one. A worker enters its script's
folder and stays there.

The node's code runs in one process, which cannot be in two folders: there they are *shared*.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from importlib.machinery import all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = [
    "SharedNameError",
    "enter",
    "entered",
    "imported",
    "leave",
    "module_name",
    "rest",
    "share",
]

__path__: list[str] = sys.path
"""`wsrelay.values.scripts.cmd` is the first `cmd.py` on `sys.path`.

This is the module name of a script that cannot have its file's name because the standard library
uses it. A child process started by `multiprocessing` can import it by the name in a pickle, like
any other script's module.
"""

_NEVER_CHANGED: Final = sys.stdlib_module_names | {"__main__", "wsrelay", "msgspec", "cloudpickle"}
"""Modules that everything else here depends on."""

_BY_PATH: Final = f"{__name__}."


class SharedNameError(Exception):
    """Two folders that share a process have different modules with the same name."""


class _Folder:
    def __init__(self, path: str) -> None:
        self.path = path
        # If false, its modules can be imported from anywhere and belong to everybody.
        self.apart = path not in map(os.path.realpath, sys.path)
        self.own: dict[str, ModuleType] = {}
        """Its modules by name, while it is not entered."""
        self.hidden: dict[str, ModuleType] = {}
        """Modules from elsewhere that its own modules replace, while it is entered."""


_folders: dict[str, _Folder] = {}
_entered: _Folder | None = None
_shared: dict[str, None] = {}


def entered() -> str | None:
    """Return the folder that is entered, or None."""
    return None if _entered is None else _entered.path


def enter(path: str) -> None:
    """Put a folder (a path without symbolic links) first on `sys.path` and restore its modules."""
    global _entered  # noqa: PLW0603 - `sys.path` and `sys.modules` are global, too
    if _entered is not None:
        if _entered.path == path:
            return
        leave()
    folder = _folders.get(path)
    if folder is None:
        folder = _folders[path] = _Folder(path)
    sys.path.insert(0, path)
    folder.hidden = _take({name for name, _ in _loaded_from_elsewhere(path)})
    sys.modules.update(folder.own)
    _entered = folder


def leave() -> None:
    """Undo `enter`."""
    global _entered  # noqa: PLW0603 - see `enter`
    if (folder := _entered) is None:
        return
    if folder.apart:
        own = {name for name, module in list(sys.modules.items()) if _lies_in(module, folder.path)}
    else:
        own = {name.partition(".")[0] for name in folder.hidden}
    folder.own = _take(own)
    sys.modules.update(folder.hidden)
    if folder.path in sys.path:
        sys.path.remove(folder.path)
    _entered = None


def rest() -> None:
    """Prepare for the next script: stay in the only folder, or leave if there are several."""
    if len(_folders) > 1:
        leave()


def share(path: str, scripts: Collection[ModuleType]) -> None:
    """Add a folder to `sys.path`.

    Raises `SharedNameError` if it has a module whose name was already loaded from another shared
    folder; `scripts` are exempt.
    """
    for name, module in _loaded_from_elsewhere(path):
        owner = next((other for other in _shared if _lies_in(module, other)), None)
        if owner is not None and module not in scripts:
            raise SharedNameError(
                f"the folders {owner} and {path} both have a module {name!r}, and the functions "
                "of endpoints share one process: rename one of the two"
            )
    _shared[path] = None
    if path not in sys.path:
        sys.path.insert(0, path)


def imported(script: Path) -> ModuleType | None:
    """Return the module of a script that another script has already imported, or None."""
    for name in (script.stem, f"{_BY_PATH}{script.stem}"):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__file__", None) == str(script):
            return module
    return None


def module_name(script: Path) -> str:
    """Return the name for a script's module: that of its file, if it is free."""
    name = script.stem
    if name in sys.stdlib_module_names or name in sys.modules:
        name = f"{_BY_PATH}{script.stem}"
    another = 2
    while name in sys.modules:
        name = f"{_BY_PATH}{script.stem}_{another}"
        another += 1
    return name


def _loaded_from_elsewhere(folder: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield modules that are not the folder's although it has a file of that name."""
    try:
        names = [file.name for file in Path(folder).iterdir()]
    except OSError:
        return  # a folder that cannot be listed may still be importable
    for file in names:
        name, dot, rest_of_name = file.partition(".")
        module = sys.modules.get(name)
        if module is None or name in _NEVER_CHANGED or _lies_in(module, folder):
            continue
        if dot + rest_of_name in all_suffixes() or Path(folder, file, "__init__.py").is_file():
            yield name, module


def _lies_in(module: ModuleType, folder: str) -> bool:
    """Whether a module, not part of a package, was found in the folder itself."""
    spec: Any = getattr(module, "__dict__", {}).get("__spec__")
    if spec is None or (spec.parent and spec.parent != spec.name and not _is_by_path(spec.name)):
        return False
    if (places := spec.submodule_search_locations) is not None:
        return any(os.path.split(place)[0] == folder for place in places)
    return bool(spec.has_location) and os.path.split(spec.origin)[0] == folder


def _is_by_path(name: str) -> bool:
    return name.startswith(_BY_PATH)


def _take(roots: set[str]) -> dict[str, ModuleType]:
    """Remove modules, and everything inside packages among them, from `sys.modules`."""
    if not roots:
        return {}  # looking at every name would cost a worker copies of the pages they lie in
    names = [name for name in sys.modules if name in roots or name.partition(".")[0] in roots]
    return {name: sys.modules.pop(name) for name in names}
