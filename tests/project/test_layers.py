"""Holds the table of layers in the architecture document to be true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsrelay

PACKAGE = Path(wsrelay.__file__).parent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"

FLOORS: dict[str, int] = {
    folder: int(floor)
    for floor, folder in re.findall(r"^\| (\d) \| `([a-z_.]+)` \|", PAGE.read_text(), re.MULTILINE)
}
"""The folders, and modules beside them, in the order of the page's table, each with its floor."""

ORDER = list(FLOORS)

PURE = {"errors", "values", "wire", "kernel", "session", "cluster"}
IMPURE = {"asyncio", "multiprocessing", "socket", "subprocess", "threading", "time"}
IMPURE_BY_NATURE = set(
    re.findall(
        r"`([a-z]+/[a-z_]+)\.py`", PAGE.read_text().partition("are pure")[2].partition(")")[0]
    )
)


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _folder(module: str) -> str:
    """The longest name in the table that is the module or a package around it."""
    name = module
    while name not in FLOORS:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{module} has no floor: put its folder into the table of docs/architecture.md"
    return name


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


def test_every_module_stands_on_a_floor() -> None:
    for name in IN_LAYERS:
        assert FLOORS[_folder(name)] in range(7)


def test_every_name_in_the_table_is_a_module_and_floors_go_up() -> None:
    assert [name for name in FLOORS if name not in MODULES] == []
    assert list(FLOORS.values()) == sorted(FLOORS.values())


def test_the_walk_sees_the_imports_that_there_are() -> None:
    assert {"errors", "kernel.lifecycle", "kernel.names"} <= set(_own_imports("kernel.machine"))
    assert {"kernel.lifecycle", "kernel.machine"} <= set(_own_imports("kernel"))
    assert {"values.linux", "values.targets", "wire", "worker"} <= set(
        _own_imports("template.main")
    )
    assert "cloudpickle" in set(_imports("wire.code"))


def test_a_module_imports_only_from_what_stands_before_it() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in IN_LAYERS
        for imported in _own_imports(module)
        # Who imports from the package itself imports from all floors.
        if not imported or ORDER.index(_folder(imported)) > ORDER.index(_folder(module))
    ]
    assert wrong == []


def test_a_pure_module_knows_no_loop_no_socket_no_thread_and_no_clock() -> None:
    pure = [name for name in IN_LAYERS if _folder(name) in PURE]
    by_nature = {name.replace("/", ".") for name in IMPURE_BY_NATURE}
    assert by_nature <= set(pure)
    wrong = [
        f"{module} imports {imported}"
        for module in pure
        if module not in by_nature
        for imported in _imports(module)
        if imported.partition(".")[0] in IMPURE
    ]
    assert wrong == []


def test_the_page_says_where_things_are() -> None:
    where = PAGE.read_text().partition("### Where is ...")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| (.+\?) \| `(wsrelay/[a-z_/]+\.py)` \|$", where, re.MULTILINE)
    assert [question for question, _ in answers] == [
        "where is a client's message handed to its process?",
        "what happens when a process dies?",
        "where would a sleeping process go?",
        "which options does a host have?",
    ]
    for _, path in answers:
        assert (PACKAGE.parent / path).is_file(), path


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
    assert "values.pid" in own
    assert {name for name in own if FLOORS[_folder(name)] != 0} == set()
    assert WEB & loaded == set()


PLAIN_NODE = """
import asyncio
from pathlib import Path
import wsrelay.cli.run, wsrelay.cli.serve, wsrelay.control.server
from wsrelay import Node, WebSocketRelay, process
from wsrelay.gateway import assembly

assembly.load([Path("handlers/wsrelay.yaml")])


async def main():
    async with Node() as node:
        node.send("nobody", "topic")
        node.send("{other@processes|1}", "topic")
        node.cancel("{other@processes|1}")
        assert node.dead_letters == 3


asyncio.run(main())
"""


def test_a_node_in_no_cluster_loads_nothing_of_clusters() -> None:
    loaded = _loaded_by(PLAIN_NODE)
    of_clusters = ("wsrelay.cluster", "wsrelay.peers", "nats")
    assert "wsrelay.node" in loaded
    assert [name for name in loaded if name.startswith(of_clusters)] == []
