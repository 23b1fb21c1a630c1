"""`wsrelay.process` and `wsrelay.aio.process` have the same calls, which a type checker knows."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsrelay import Room, Timer, aio, process
from wsrelay.aio import process as aio_process

KINDS = ("Channel", "registry", "groups")
RENAMED = {"__iter__": "__aiter__", "AsyncIterator": "Iterator"}


def signature(function: Any) -> str:
    """Names, defaults and annotations; those of the asynchronous face as they are in the other."""
    return str(inspect.signature(function)).replace("AsyncIterator", "Iterator")


def functions(face: ModuleType | type) -> dict[str, Any]:
    names = face.__all__ if isinstance(face, ModuleType) else dir(face)
    return {
        name.replace("__aiter__", "__iter__"): getattr(face, name)
        for name in names
        if name not in KINDS
        if not isinstance(face, type) or not name.startswith("_") or name in RENAMED.values()
        if inspect.isfunction(getattr(face, name))
    }


def test_both_faces_have_the_same_names() -> None:
    assert set(process.__all__) == set(aio_process.__all__)
    for kind in KINDS:
        assert functions(getattr(process, kind)).keys() - {"__iter__"} == (
            functions(getattr(aio_process, kind)).keys() - {"__iter__"}
        )


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_both_faces_have_the_same_signatures(kind: str | None) -> None:
    one: Any = process if kind is None else getattr(process, kind)
    other: Any = aio_process if kind is None else getattr(aio_process, kind)
    here, there = functions(one), functions(other)
    assert here
    different = {
        name: (signature(here[name]), signature(there[name]))
        for name in here.keys() & there.keys()
        if signature(here[name]) != signature(there[name])
    }
    assert different == {}


SEMANTICS = Path(__file__).resolve().parents[2] / "docs" / "semantics.md"
ROWS = re.findall(r"^\| (.*`.*) \| (awaited|plain) \|$", SEMANTICS.read_text(), re.MULTILINE)


def named(row: str) -> dict[str, Any]:
    """What a row of the table of both faces names, in `wsrelay.aio`."""
    owners = {"message's": aio.Message, "client's": aio.Client, "Room": aio.Room, "its": aio.Room}
    owner: Any = next((one for word, one in owners.items() if word in row), aio_process)
    found, before = {}, ""
    for name in re.findall(r"`([\w.]+)`", row.replace("`Room`", "")):
        path = before + name if name.startswith(".") else name
        before = path.partition(".")[0]
        one: Any = Timer if before == "Timer" else owner
        for part in path.removeprefix("Timer.").split("."):
            one = getattr(one, part)
        found[path] = one
    return found


def test_what_the_table_says_is_awaited_and_nothing_else_is() -> None:
    table = {(row, name): kind for row, kind in ROWS for name in named(row)}
    assert {
        (row, name): "awaited" if inspect.iscoroutinefunction(one) else "plain"
        for row, _ in ROWS
        for name, one in named(row).items()
    } == table
    assert {name for _, name in table} >= set(aio_process.__all__) - set(KINDS) | {
        f"{kind}.{name}"
        for kind in ("registry", "groups")
        for name in functions(getattr(aio_process, kind))
    }


USER = """
from wsrelay import Event, Member, Message, Presence, Timer, process
from wsrelay.aio import process as aio


def double(number: int) -> int:
    return 2 * number


async def name() -> str:
    return "it"


def right() -> None:
    number: int = process.exec(double, None, 1)
    text: str = process.exec(name)
    whatever = process.exec("module:function")
    whatever.anything()
    channel, message = process.select(process.inbox(), process.listen("topic"))
    topic: str = message.topic
    same: process.Channel[Message] = channel
    mixed, item = process.select(process.inbox(), process.events())
    item.anything()
    for event in process.events():
        kind: str = event.kind
    names: list[str] = process.call("room", "names", as_=list[str])
    process.call("room", "names").anything()
    message.reply(names)
    for either in process.incoming():
        either_kind: str = either.kind if isinstance(either, Event) else either.topic
    clock, tick = process.select(process.ticks(1 / 30))
    late: float = tick.late
    process.unlisten(clock)
    why: str = process.stopping()
    timer: Timer = process.send_after(0.5, process.pid(), "topic")
    timer.cancel()
    for shown in process.groups.watch("group"):
        change: Presence = shown
        process.unlisten(process.groups.watch("group"))
    members: list[Member] = process.groups.roster("group")
    process.groups.join("group", meta={"any": "data"})
    print(number, text, topic, same, mixed, kind, either_kind, late, why, change, members)


async def right_too() -> None:
    number: int = await aio.exec(double, None, 1)
    number = await aio.call("room", "count", timeout=None, as_=int)
    _, event = await aio.select(aio.events())
    end: Event = event
    async for message in aio.inbox():
        print(message.topic, number, end)
    async for either in aio.incoming():
        print(either.kind if isinstance(either, Event) else either.topic)
    async for tick in aio.ticks(1):
        print(tick.number, aio.stopping())
    members: list[Member] = await aio.groups.roster("group")
    async for shown in aio.groups.watch("group"):
        change: Presence = shown
        print(change.meta, members)


def wrong() -> None:
    text: str = process.exec(double, None, 1)  # WRONG
    number: int = process.exec(name)  # WRONG
    process.exec(3)  # WRONG
    _, message = process.select(process.inbox())
    message.kind  # WRONG
    process.inbox().receive(timeout="soon")  # WRONG
    process.send(3, "topic")  # WRONG
    process.spawn(double, 3)  # WRONG
    process.registry.register(3)  # WRONG
    process.set_options(traps=True)  # WRONG
    text = process.call("room", "count", as_=int)  # WRONG
    process.call("room", "count", timeout="5s")  # WRONG
    message.refuse(3)  # WRONG
    for either in process.incoming():
        either.topic  # WRONG
    process.ticks("1s")  # WRONG
    process.groups.join("group", None, {})  # WRONG
    process.groups.watch("group").receive().topic  # WRONG
    process.send_after("1s", "name", "topic")  # WRONG
    print(text, number)


async def wrong_too() -> None:
    text: str = await aio.exec(double, None, 1)  # WRONG
    aio.inbox().receive().topic  # WRONG
    text = aio.call("room", "name", as_=str)  # WRONG
    aio.send_after(1, "name", "topic").cancel()  # WRONG
    _, message = await aio.select(aio.inbox())
    message.kind  # WRONG
    print(text)
"""


PAGE = Path(__file__).resolve().parents[2] / "docs" / "rooms.md"
CHAT, AGENT, TYPED = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """The errors that a type checker finds, by file and line."""
    folder = tmp_path_factory.mktemp("typed")
    files = {"user.py": USER, "chat.py": CHAT, "agent.py": AGENT, "typed.py": TYPED}
    for name, text in files.items():
        (folder / name).write_text(text)
    checking = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    done = subprocess.run(
        [*checking, f"--cache-dir={folder / 'cache'}", *(str(folder / name) for name in files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    errors: dict[str, dict[int, str]] = {name: {} for name in files}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(rf"{re.escape(str(folder))}/(\w+\.py):(\d+): error: (.*)", line):
            errors[match[1]].setdefault(int(match[2]), match[3])
    return errors


def test_a_type_checker_finds_a_user_s_mistakes_and_no_others(
    found: dict[str, dict[int, str]],
) -> None:
    lines = enumerate(USER.splitlines(), 1)
    assert found["user.py"].keys() == {
        number for number, line in lines if line.endswith("# WRONG")
    }, found["user.py"]


def test_a_type_checker_finds_in_rooms_what_their_page_says_and_nothing_else(
    found: dict[str, dict[int, str]],
) -> None:
    assert (found["chat.py"], found["agent.py"]) == ({}, {})
    expected = {
        number: line.partition("# error: ")[2]
        for number, line in enumerate(TYPED.splitlines(), 1)
        if "# error: " in line
    }
    assert len(expected) > 10
    assert found["typed.py"].keys() == expected.keys(), found["typed.py"]
    for line, words in expected.items():
        assert found["typed.py"][line].startswith(words), (line, found["typed.py"][line])


@pytest.mark.parametrize(("text", "base"), [(CHAT, Room), (AGENT, aio.Room)])
def test_the_rooms_of_the_page_can_be_made(text: str, base: type) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    exec(text, namespace)  # noqa: S102 - ours
    made = [one for one in namespace.values() if isinstance(one, type) and base in one.__mro__[1:]]
    assert len(made) == 1
