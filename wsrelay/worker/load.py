"""Finding the function that a target names. User code runs here, so anything may be raised."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from wsrelay.errors import InvalidTarget
from wsrelay.values import scripts
from wsrelay.values.targets import Target, runnable

__all__ = [
    "LoadError",
    "forget_script",
    "load_function",
    "load_module",
    "load_target",
    "set_arguments",
    "user_traceback",
]


class _Compiling(SourceFileLoader):
    """Compiles a script whenever it is loaded, as `python script.py` does.

    Cached bytecode is matched to its source by size and by modification time in whole seconds:
    after an edit within the same second that leaves the size as it was, the old script would run.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


_NOT_THE_USER_S = (
    str(Path(__file__).resolve().parent.parent) + os.sep,
    "<frozen importlib",
    importlib.__file__,
    str(Path(os.__file__).parent / "asyncio") + os.sep,
)
"""How the names of files begin whose frames are around the user's code."""

_scripts: dict[str, ModuleType] = {}
_arguments: tuple[str, ...] = ()


class LoadError(Exception):
    """The target cannot be loaded: has one line, and the traceback if user code raised."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def set_arguments(arguments: tuple[str, ...]) -> None:
    """Put these into the `sys.argv` of what `load_target` loads from now on, after its own path."""
    global _arguments  # noqa: PLW0603 - as `sys.argv` is
    _arguments = arguments
    sys.argv = ["", *arguments]


def load_target(target: Target) -> Callable[..., Any]:
    """Return the function that the target names, in a process of its own; raises `LoadError`.

    From then on, the process imports from the folder of this script and of no other.
    """
    if target.script is not None:
        sys.argv = [target.script, *_arguments]
        return _function(_load_script(target.script, scripts.enter), target)
    sys.argv = [str(target.module), *_arguments]
    module = load_module(str(target.module))
    file: str | None = getattr(module, "__file__", None)  # modules written in C may have none
    if file is not None:
        sys.argv[:1] = [file]
    return _function(module, target)


def load_function(target: Target) -> Callable[..., Any]:
    """Return the function of one of a process's several targets; raises `LoadError`."""
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
        defined = f"it defines {', '.join(names)}" if names else "it defines no functions"
        raise LoadError(f"{place} has no function {target.function!r}; {defined}")
    if not callable(function):
        raise LoadError(f"{place}: {target.function!r} is not a function but {function!r:.80}")
    try:
        return runnable(function)
    except InvalidTarget as error:
        raise LoadError(f"{place}: {error}") from None


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
    stem, so code under a `__main__` guard does not run.
    """
    if (module := _scripts.get(path)) is not None:
        enter(path.rpartition(os.sep)[0] or os.sep)
        return module  # the path of a worker, where each step costs it pages of its own
    file = Path(path).resolve()
    path = str(file)
    try:
        if not file.is_file():
            raise LoadError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}")
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from None
    enter(str(file.parent))
    if (module := _scripts.get(path) or scripts.imported(file)) is not None:
        _scripts[path] = module
        return module
    name = scripts.module_name(file)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is not a Python file")
    if type(spec.loader) is SourceFileLoader:
        spec.loader = _Compiling(name, path)
    module = importlib.util.module_from_spec(spec)
    module.__package__ = ""  # as for any script, whatever its module is named
    sys.modules[name] = _scripts[path] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
        del sys.modules[name], _scripts[path]
        raise _raised(path, error) from None
    return module


def forget_script(path: str) -> None:
    """Let the next load run the script again, because it was edited."""
    if (module := _scripts.pop(str(Path(path).resolve()), None)) is not None:
        sys.modules.pop(module.__name__, None)


def _raised(place: str, error: BaseException) -> LoadError:
    line = traceback.format_exception_only(error)[-1].strip()
    if (advice := _advice(error)) is not None:
        line = f"{line}; {advice}"
    return LoadError(f"{place} cannot be imported: {line}", user_traceback(error))


def user_frames(error: BaseException) -> TracebackType | None:
    """Return the error's traceback from the first frame on that is the user's own."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if not file.startswith(_NOT_THE_USER_S):
            break
        frame = frame.tb_next
    return frame


def user_traceback(error: BaseException) -> str:
    """Return the error as text, with the traceback that `user_frames` returns."""
    if (advice := _advice(error)) is not None:
        error.add_note(advice)
    return "".join(traceback.format_exception(type(error), error, user_frames(error)))


def _advice(error: BaseException) -> str | None:
    """Say what to write in place of `from .util import x` in a script."""
    if not isinstance(error, ImportError) or "no known parent package" not in str(error):
        return None
    written = traceback.extract_tb(error.__traceback__)[-1].line or "from .util import x"
    right = re.sub(r"^from \.+(?=\w)", "from ", re.sub(r"^from \.+ import", "import", written))
    return (
        f"a script is not part of a package: write `{right}` in place of `{written}`, or name it "
        "as a module of a package, package.module:function"
    )
