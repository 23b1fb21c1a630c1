"""Finding the function that a target names. The user's code runs here, so all may be raised."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from wsrelay import scripts
from wsrelay.targets import Target

__all__ = [
    "LoadError",
    "forget_script",
    "load_function",
    "load_module",
    "load_target",
    "user_traceback",
]

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_scripts: dict[str, ModuleType] = {}


class LoadError(Exception):
    """The target cannot be loaded: one line, and the traceback of the user's code if it raised."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def load_target(target: Target) -> Callable[..., Any]:
    """Return the function that the target names, in a process of its own; raises `LoadError`.

    From then on the process imports what a script's folder has, and no other script's.
    """
    if target.script is not None:
        return _function(_load_script(target.script, scripts.enter), target)
    return _function(load_module(str(target.module)), target)


def load_function(target: Target) -> Callable[..., Any]:
    """Return the function that the target names, in a process of many; raises `LoadError`."""
    if target.script is not None:
        return _function(_load_script(target.script, _share), target)
    return _function(load_module(str(target.module)), target)


def _share(folder: str) -> None:
    try:
        scripts.share(folder, _scripts.values())
    except scripts.SharedNameError as error:
        raise LoadError(str(error)) from None


def _function(module: ModuleType, target: Target) -> Callable[..., Any]:
    function = getattr(module, target.function, None)
    place = target.script or target.module
    if function is None:
        names = [
            name
            for name, value in vars(module).items()
            if callable(value)
            and getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
        ]
        there = f"it defines {', '.join(names)}" if names else "it defines no function at all"
        raise LoadError(f"{place} has no function {target.function!r}; {there}")
    if not callable(function):
        raise LoadError(f"{place}: {target.function!r} is no function but {function!r:.80}")
    return function  # type: ignore[no-any-return]


def load_module(name: str) -> ModuleType:
    """Import a module; raises `LoadError`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name or name.startswith(f"{error.name}."):
            raise LoadError(f"there is no module {error.name!r} on sys.path") from None
        raise _raised(name, error) from None
    except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
        raise _raised(name, error) from None


def _load_script(path: str, enter: Callable[[str], None]) -> ModuleType:
    """Run a script once and return it as a module; raises `LoadError`.

    Its folder comes first on `sys.path`, as for `python script.py`, but `__name__` is the file's
    stem, so a `__main__` guard stays shut.
    """
    if (module := _scripts.get(path)) is not None:
        enter(os.path.split(path)[0])
        return module  # the way of a worker, where each step costs it pages of its own
    file = Path(path).resolve()
    path = str(file)
    if not file.is_file():
        raise LoadError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}")
    enter(str(file.parent))
    if (module := _scripts.get(path) or scripts.imported(file)) is not None:
        _scripts[path] = module
        return module
    name = scripts.module_name(file)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    module.__package__ = ""  # that of a script, whatever its module's name is
    sys.modules[name] = _scripts[path] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
        del sys.modules[name], _scripts[path]
        raise _raised(path, error) from None
    return module


def forget_script(path: str) -> None:
    """Let the next `load_script` run the script again, because it was edited."""
    if (module := _scripts.pop(str(Path(path).resolve()), None)) is not None:
        sys.modules.pop(module.__name__, None)


def _raised(place: str, error: BaseException) -> LoadError:
    line = traceback.format_exception_only(error)[-1].strip()
    return LoadError(f"{place} cannot be imported: {line}", user_traceback(error))


def user_traceback(error: BaseException) -> str:
    """Return the traceback's text without wsrelay's and the import system's outermost frames."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if not file.startswith((_PACKAGE, "<frozen importlib", importlib.__file__)):
            break
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame))
