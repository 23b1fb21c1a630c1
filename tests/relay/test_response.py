"""`RelayResponse`: what it writes into the header, and what it refuses."""

from __future__ import annotations

import functools
import json
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import rooms

from wsrelay import PID, RelayResponse, Room
from wsrelay.errors import RelayRefused
from wsrelay.values.scripts import __name__ as by_path

TARGET = "{local@processes|k3f9.1-1}"


class Chat(Room):
    def say(self) -> None: ...

    class Inner: ...


class Plain: ...


def chat() -> None: ...


@functools.wraps(chat)
def wrapped() -> None:
    chat()


def written(*args: Any, **fields: Any) -> dict[str, Any]:
    relay: dict[str, Any] = json.loads(RelayResponse(*args, **fields).headers["x-ws-relay"])
    return relay


def test_a_process_is_named_first_as_ever() -> None:
    assert written(TARGET, metadata={"a": 1}) == {"target_pid": TARGET, "metadata": {"a": 1}}


def test_a_target_is_written_with_all_that_belongs_to_it() -> None:
    assert written(
        target="app:room",
        name="room:blue",
        host="app:processes",
        args=("blue", [1], {"pid": PID(TARGET)}),
        end_when_empty="30s",
    ) == {
        "target": "app:room",
        "name": "room:blue",
        "host": "app:processes",
        "args": ["blue", [1], {"pid": TARGET}],
        "end_when_empty": "30s",
    }


def test_functions_and_classes_that_can_be_imported_become_their_text() -> None:
    for target, text in (
        (Chat, f"{__name__}:Chat"),
        (chat, f"{__name__}:chat"),
        (rooms.echo, "rooms:echo"),
    ):
        assert written(target=target) == {"target": text}


def test_a_script_whose_module_has_another_name_than_its_file_is_named_by_its_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType(f"{by_path}.random")
    module.__file__ = "/srv/random.py"
    exec("def chat(): ...", vars(module))  # noqa: S102 - as a script is run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert written(target=module.chat) == {"target": "/srv/random.py:chat"}


def local() -> Any:
    def inside() -> None: ...

    return inside


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (lambda: None, "a lambda"),
        (local(), "defined inside a function"),
        (Chat.say, "a part of a class"),
        (Chat.Inner, "a part of a class"),
        (functools.partial(chat), "an object of type partial"),
        (wrapped, f"not what {__name__}:chat is"),
        (3, "of type int, not a function"),
    ],
)
def test_what_has_no_text_is_refused_with_what_is_right(target: Any, what: str) -> None:
    with pytest.raises(RelayRefused) as refused:
        RelayResponse(target=target)
    assert f"cannot be written as text (it is {what})" in str(refused.value)
    assert "a function or class at the top level of a module" in str(refused.value)


def test_durations_may_be_seconds() -> None:
    assert written(target="app:room", name="x", end_when_empty=0, heartbeat_interval=1.5) == {
        "target": "app:room",
        "name": "x",
        "end_when_empty": "0s",
        "heartbeat_interval": "1.5s",
    }


@pytest.mark.parametrize("option", ["end_when_empty", "heartbeat_interval"])
@pytest.mark.parametrize("given", [-1, math.nan, math.inf, True, b"1s", "soon"])
def test_durations_that_are_none_are_refused(option: str, given: Any) -> None:
    with pytest.raises(RelayRefused, match=f"{option}: .*"):
        RelayResponse(target="app:room", name="x", **{option: given})


def test_a_class_that_is_no_room_is_refused_with_what_is_right() -> None:
    with pytest.raises(RelayRefused, match="Plain is a class, but not a subclass of"):
        RelayResponse(target=Plain)


RING: list[Any] = []
RING.append(RING)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([{1, 2}], r"args\[0\] is of type set: arguments of a target are JSON"),
        ([1, [b"x"]], r"args\[1\]\[0\] is of type bytes: "),
        ([{"a": chat}], r"args\[0\]\['a'\] is of type function: "),
        ([{1: "a"}], r"args\[0\] has the key 1: "),
        ([math.nan], "cannot be written as JSON: Out of range float"),
        ([RING], "nested too deeply"),
        ("blue", "args is 'blue' and must be a list"),
        (5, "args is 5 and must be a list"),
    ],
)
def test_arguments_that_are_not_json_are_refused(args: Any, told: str) -> None:
    with pytest.raises(RelayRefused, match=told):
        RelayResponse(target="app:room", args=args)


def test_metadata_that_are_no_dict_are_refused() -> None:
    with pytest.raises(RelayRefused, match=r"metadata is \['Ada'\] and must be a dict"):
        RelayResponse(TARGET, metadata=["Ada"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{}, {"target_pid": TARGET, "target": chat}, {"target_pid": TARGET, "name": "x"}]
)
def test_what_the_relay_would_refuse_is_refused_where_it_is_written(fields: Any) -> None:
    with pytest.raises(RelayRefused, match="X-WS-Relay: it has"):
        RelayResponse(**fields)
