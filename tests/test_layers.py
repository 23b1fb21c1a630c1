"""Holds the table of layers in the architecture document to be true."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsrelay

PACKAGE = Path(wsrelay.__file__).parent

# A name stands for the module, or for the package and all that is in it; the longest one counts.
LAYERS: dict[str, int] = {
    "errors": 0,
    "pid": 0,
    "message": 0,
    "durations": 0,
    "sizes": 0,
    "printable": 0,
    "bounds": 0,
    "bucket": 0,
    "buffered": 0,
    "netblock": 0,
    "sparing": 3,
    "targets": 0,
    "scripts": 0,
    "rights": 0,
    "osproc": 0,
    "duplex": 0,
    "payload": 1,
    "logrecord": 1,
    "wire": 1,
    "spawning": 1,
    "current": 1,
    "spawned": 1,
    "kernel": 1,
    "relay.session": 1,
    "relay.command": 1,
    "relay.frames": 1,
    "relay.handshake": 1,
    "relay.header": 1,
    "relay.hosts": 1,
    "relay.origins": 1,
    "relay.outbox": 1,
    "host": 2,
    "worker": 2,
    "node": 2,
    "process": 3,
    "aio": 3,
    "relay": 3,
    "supervisor": 3,
    "config": 4,
    "gateway": 4,
    "control": 4,
    "testing": 4,
    "pytest_plugin": 4,
    "cli": 4,
}

IMPURE = {"asyncio", "multiprocessing", "socket", "subprocess", "threading", "time"}
IMPURE_BY_NATURE = {"osproc", "spawning", "current"}

REACHES_INSIDE = {("aio.process", "worker.context")}
"""Exceptions: the asynchronous face speaks to the same context as `process`, past the package."""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _at(module: str) -> int:
    """The layer of the longest name in the table that is the module or a package around it."""
    name = module
    while name not in LAYERS:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{module} has no layer: put it into the table"
    return LAYERS[name]


def _imports(module: str) -> Iterator[str]:
    """The full names of what a module imports, wherever in it the import stands."""
    path = MODULES[module]
    package = ["wsrelay", *module.split(".")] if module else ["wsrelay"]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from wsrelay import wire` takes a module, `from .pid import PID` a name.
                inner = f"{origin}.{alias.name}"
                yield inner if inner.removeprefix("wsrelay.") in MODULES else origin


def _own_imports(module: str) -> list[str]:
    """What a module imports from this package, without the package's name."""
    return [
        name.removeprefix("wsrelay").removeprefix(".")
        for name in _imports(module)
        if name.partition(".")[0] == "wsrelay"
    ]


# The package itself and its `__main__` stand outside: the one hands names on at their first use.
IN_LAYERS = [name for name in MODULES if name not in ("", "__main__")]


def test_every_module_has_a_layer() -> None:
    for name in IN_LAYERS:
        assert _at(name) in range(5)


def test_every_name_in_the_table_is_a_module() -> None:
    assert [name for name in LAYERS if name not in MODULES] == []


def test_the_walk_sees_the_imports_that_there_are() -> None:
    assert {"errors", "kernel.lifecycle", "kernel.names"} <= set(_own_imports("kernel.machine"))
    assert {"kernel.lifecycle", "kernel.machine"} <= set(_own_imports("kernel"))
    assert {"osproc", "targets", "wire", "worker"} <= set(_own_imports("host.template"))
    assert "cloudpickle" in set(_imports("spawning"))


def test_a_module_imports_only_from_its_own_layer_or_below() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in IN_LAYERS
        for imported in _own_imports(module)
        # Who imports from the package itself imports from all layers.
        if not imported or _at(imported) > _at(module)
    ]
    assert wrong == []


def test_nobody_reaches_into_a_driver_of_another_package() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in IN_LAYERS
        for imported in _own_imports(module)
        if "." in imported and LAYERS.get(imported.partition(".")[0]) == 2
        if module.partition(".")[0] != imported.partition(".")[0]
        if (module, imported) not in REACHES_INSIDE
    ]
    assert wrong == []


def test_a_pure_module_knows_no_loop_no_socket_no_thread_and_no_clock() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in IN_LAYERS
        if _at(module) <= 1 and module not in IMPURE_BY_NATURE
        for imported in _imports(module)
        if imported.partition(".")[0] in IMPURE
    ]
    assert wrong == []


def _loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


WEB = {"uvicorn", "starlette", "click", "rich", "wsproto", "h11"}


@pytest.mark.parametrize("module", ["wsrelay.process", "wsrelay.worker"])
def test_a_worker_carries_no_web_server_and_no_command_line(module: str) -> None:
    loaded = _loaded_by(f"import {module}")
    assert module in loaded
    assert WEB & loaded == set()


def test_the_package_alone_loads_values_and_nothing_else() -> None:
    loaded = _loaded_by("import wsrelay")
    own = {name.removeprefix("wsrelay.") for name in loaded if name.startswith("wsrelay.")}
    assert "pid" in own
    assert {name for name in own if _at(name) != 0} == set()
    assert WEB & loaded == set()
