from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import end_of, processes, value_of

from wsrelay import HostOptions, Node

pytestmark = pytest.mark.anyio


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def two_folders(tmp_path: Path, script: str, utils: str = "utils.py") -> list[str]:
    """The same script in two folders, each beside a module `utils` of its own."""
    for name in ("rooms", "games"):
        write(tmp_path / name / utils, f"NAME = '{name}'\nclass Named: name = NAME\n")
    return [write(tmp_path / name / "main.py", script) for name in ("rooms", "games")]


# Modules


@pytest.mark.parametrize("utils", ["utils.py", "utils/__init__.py"])
@pytest.mark.parametrize("preloaded", [True, False])
async def test_each_script_imports_the_modules_of_its_own_folder(
    tmp_path: Path, utils: str, preloaded: bool
) -> None:
    script = (
        "import utils\ndef handler():\n    import utils as now\n    return utils.NAME, now.NAME\n"
    )
    scripts = two_folders(tmp_path, script, utils)
    late = [
        write(
            Path(path).with_name("late.py"),
            "def handler():\n    import utils\n    return utils.NAME\n",
        )
        for path in scripts
    ]
    targets = tuple([*scripts, *late] if preloaded else ())
    async with Node(hosts=[HostOptions(targets=targets)]) as node:
        for name, path, lazy in zip(("rooms", "games"), scripts, late, strict=True):
            assert await value_of(node, path) == [name, name]
            assert await value_of(node, lazy) == name


async def test_a_module_of_one_script_s_folder_is_not_there_for_another_s(tmp_path: Path) -> None:
    write(tmp_path / "rooms" / "settings.py", "")
    rooms = write(tmp_path / "rooms" / "rooms.py", "import settings\ndef handler(): pass\n")
    games = write(
        tmp_path / "games" / "games.py",
        "try:\n    import settings\nexcept ImportError:\n    settings = 'none'\n"
        "def handler(): return settings\n",
    )
    async with Node(hosts=[HostOptions(targets=(rooms, games))]) as node:
        assert await value_of(node, games) == "none"


async def test_a_module_on_the_path_makes_way_for_that_of_a_script_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is loaded once, for all scripts that have none of their own."""
    write(tmp_path / "shared" / "utils.py", "NAME = 'shared'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "shared"))
    script = "import utils\ndef handler(): return utils.NAME\n"
    rooms, games = two_folders(tmp_path, script)
    Path(games).with_name("utils.py").unlink()
    options = HostOptions(preload=("utils",), targets=(rooms, games))
    async with Node(hosts=[options]) as node:
        assert await value_of(node, rooms) == "rooms"
        assert await value_of(node, games) == "shared"


async def test_what_a_handler_spawns_finds_what_the_handler_would(tmp_path: Path) -> None:
    """A function, a module, and a script of another folder with an argument of this one's."""
    scripts = two_folders(
        tmp_path,
        "import utils\n"
        "from wsrelay import process\n"
        "def named(): return utils.NAME\n"
        "def told(value): return value.name\n"
        "def handler(other):\n"
        "    own = [named, lambda: utils.NAME, 'helpers:work']\n"
        "    ends = [process.exec(target) for target in own]\n"
        "    return [*ends, process.exec(f'{other}:told', None, utils.Named())]\n",
    )
    for path in scripts:
        write(Path(path).with_name("helpers.py"), "import utils\ndef work(): return utils.NAME\n")
    async with Node(hosts=[HostOptions(targets=tuple(scripts))]) as node:
        assert await value_of(node, scripts[0], scripts[1]) == ["rooms"] * 4
        assert await value_of(node, scripts[1], scripts[0]) == ["games"] * 4


async def test_a_script_that_another_one_imports_runs_once(tmp_path: Path) -> None:
    first = write(tmp_path / "first.py", "import second\ndef handler(): return second.LOADED\n")
    second = write(
        tmp_path / "second.py",
        "import random\nLOADED = random.random()\ndef handler(): return LOADED\n",
    )
    async with Node(hosts=[HostOptions(targets=(first, second))]) as node:
        assert await value_of(node, first) == await value_of(node, second)


async def test_functions_that_share_a_process_refuse_two_modules_of_one_name(
    tmp_path: Path,
) -> None:
    scripts = two_folders(tmp_path, "import utils\ndef handler(): pass\n")
    code = (
        "import sys\nfrom wsrelay import worker\nfrom wsrelay.values import targets\n"
        "for path in sys.argv[1:]: worker.load_function(targets.parse(path))\n"
    )
    loading = [sys.executable, "-c", code, *scripts]
    done = await asyncio.to_thread(subprocess.run, loading, capture_output=True, text=True)
    assert re.search("rooms and .*games both have a module 'utils'.*: rename one", done.stderr)


# Names


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("name", ["mine", "cmd"])
async def test_children_of_multiprocessing_import_the_script(
    tmp_path: Path, name: str, method: str
) -> None:
    """Also one that has the name of a module of the standard library."""
    script = write(
        tmp_path / f"{name}.py",
        "import multiprocessing, os, utils\n"
        "def work(number): return [number * utils.TWO, os.getpid()]\n"
        "def handler():\n"
        f"    with multiprocessing.get_context('{method}').Pool(1) as pool:\n"
        "        (value, child), = pool.map(work, [21])\n"
        "    return value, child != os.getpid(), __name__\n",
    )
    write(tmp_path / "utils.py", "TWO = 2\n")
    async with Node(hosts=[processes(targets=(script,))]) as node:
        value, elsewhere, module = await value_of(node, script)
    assert (value, elsewhere) == (42, True)
    assert module == {"mine": "mine", "cmd": "wsrelay.values.scripts.cmd"}[name]


# Arguments


@pytest.mark.parametrize("arguments", [(), ("--model", "x")])
async def test_a_script_finds_its_arguments_in_sys_argv(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """At its top level and in the handler, and each script its own path before them."""
    code = "import sys\nTOP = list(sys.argv)\ndef handler(): return TOP, sys.argv\n"
    scripts = [write(tmp_path / f"{name}.py", code) for name in ("first", "second")]
    async with Node(hosts=[HostOptions(targets=tuple(scripts), arguments=arguments)]) as node:
        for script in scripts:
            assert await value_of(node, script) == [[script, *arguments]] * 2


# What a script cannot do


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("from .util import x", "from util import x"),
        ("from . import util", "import util"),
        ("from ..deep.util import x as y", "from deep.util import x as y"),
    ],
)
async def test_a_relative_import_in_a_script_says_what_to_write(
    tmp_path: Path, written: str, right: str
) -> None:
    script = write(tmp_path / "relative.py", f"{written}\ndef handler(): pass\n")
    late = write(tmp_path / "late.py", f"def handler():\n    {written}\n")
    advice = f"write `{right}` in place of `{written}`"
    async with Node(hosts=[processes()]) as node:
        for path, told in ((script, "message"), (late, "traceback")):
            error = (await end_of(node, path)).error
            assert advice in getattr(error, told)


@pytest.mark.parametrize(
    "call",
    [
        "breakpoint()",
        "input('? ')",
        "import pdb; pdb.set_trace()",
        "import pdb, sys; pdb.post_mortem(sys.exc_info()[2])",
    ],
)
async def test_what_needs_a_terminal_says_what_to_do_without(tmp_path: Path, call: str) -> None:
    code = (
        "def handler():\n"
        "    try:\n"
        "        1 / 0\n"
        "    except ZeroDivisionError:\n"
        f"        {call}\n"
        "    return 1\n"
    )
    script = write(tmp_path / "asks.py", code)
    async with Node(hosts=[processes()]) as node:
        error = (await end_of(node, script)).error
    assert error is not None
    assert "needs a terminal, and a worker has none" in error.message
    assert "debugpy.listen(port)" in error.message


async def test_a_script_s_own_input_and_breakpoint_hook_are_used(tmp_path: Path) -> None:
    script = write(
        tmp_path / "own.py",
        "import io, sys\n"
        "sys.breakpointhook = lambda: 'its own'\n"
        "def handler():\n"
        "    sys.stdin = io.StringIO('typed\\n')\n"
        "    return breakpoint(), input()\n",
    )
    async with Node(hosts=[processes(targets=(script,))]) as node:
        assert await value_of(node, script) == ["its own", "typed"]
