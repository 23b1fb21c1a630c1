"""What a room's class declares, and what is refused when the class is made."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import cloudpickle
import msgspec
import pytest

from wsrelay import Client, InvalidMessage, PayloadError, Room, aio, answers, every, on
from wsrelay.room import BaseRoom
from wsrelay.values.declarations import HOOKS, Every
from wsrelay.values.schedule import Schedule

T = TypeVar("T")
FACES = pytest.mark.parametrize("base", [Room, aio.Room], ids=["", "aio_"])


class Say(msgspec.Struct, tag="say"):
    text: str


class Move(msgspec.Struct, tag="move"):
    x: int


class Numbered(msgspec.Struct, tag=1):
    x: int


class Kinded(msgspec.Struct, tag="kinded", tag_field="kind"):
    x: int


class SayAgain(msgspec.Struct, tag="say"):
    text: str


class Untagged(msgspec.Struct):
    text: str


class User(msgspec.Struct):
    name: str


def method(base: type[BaseRoom[Any]], parameters: str = "self", body: str = "pass") -> Any:
    """Make a method of the kind that the room wants."""
    kind = "async def" if base is aio.Room else "def"
    namespace: dict[str, Any] = {}
    exec(f"{kind} method({parameters}): {body}", namespace)  # noqa: S102 - ours
    return namespace["method"]


def helper(self: Any, *others: Any) -> None:
    """Be no hook."""


def made(base: Any, **body: Any) -> Any:
    return type("Made", (base,), body)


@FACES
def test_a_class_declares_its_hooks_and_marked_methods(base: Any) -> None:
    cls = made(
        base,
        on_text=method(base, "self, client, text"),
        say=on(Say)(method(base, "self, client, message")),
        on_note=on("note")(method(base, "self, message")),
        tick=every(1 / 30)(method(base)),
        beat=every(1, when_empty=True)(method(base)),
        ask=answers(method(base)),
        tell=answers(method(base, "self, number: int = 3")),
        helper=helper,
    )
    found = cls._wsrelay_declaration
    assert found.own == {"on_text"}
    assert (found.kinds, found.topics) == ({Say: "say"}, {"note": "on_note"})
    assert (found.tags, found.tag_field) == ({"say": Say}, "type")
    assert found.ticks == {"tick": Every(1 / 30), "beat": Every(1, when_empty=True)}
    assert found.answers.keys() == {"ask", "tell"}
    assert found.answers["ask"] is None
    assert found.metadata is None
    assert msgspec.structs.asdict(pickle.loads(pickle.dumps(found))).keys()  # noqa: S301 - ours


@FACES
def test_a_subclass_inherits_what_its_base_declares_and_may_replace_the_methods(base: Any) -> None:
    class First(base[User]):  # type: ignore[misc]
        on_text = method(base, "self, client, text")
        say = on(Say)(method(base, "self, client, message"))

    class Second(First):
        say = method(base, "self, client, message, more=1")
        move = on(Move)(method(base, "self, client, message"))

    assert Second._wsrelay_declaration.kinds == {Say: "say", Move: "move"}
    assert Second._wsrelay_declaration.own == {"on_text"}
    assert Second._wsrelay_declaration.metadata is User
    assert First._wsrelay_declaration.kinds == {Say: "say"}


@FACES
def test_the_type_of_metadata_is_found_through_generic_bases(base: Any) -> None:
    class Plain(base):  # type: ignore[misc]
        pass

    class Dict(base[dict[str, Any]]):  # type: ignore[misc]
        pass

    class Between(base[T], Generic[T]):  # type: ignore[misc]
        pass

    class Last(Between[User]):
        pass

    assert [one._wsrelay_declaration.metadata for one in (Plain, Dict, Between, Last)] == [
        None, None, None, User,
    ]  # fmt: skip


CLIENT_AND_MESSAGE = "self, client, message"

WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown hook": (
        lambda base: {"on_jion": method(base, "self, client")},
        "there is no hook on_jion: did you mean 'on_join'? (the hooks are on_start, on_join, ",
    ),
    "a hook with other parameters": (
        lambda base: {"on_leave": method(base, "self, client")},
        "on_leave(self, client) must be on_leave(self, client, code, reason)",
    ),
    "a method of @on with other parameters": (
        lambda base: {"say": on(Say)(method(base, "self, message"))},
        "say(self, message) must be say(self, client, message)",
    ),
    "a method of a topic with other parameters": (
        lambda base: {"note": on("note")(method(base, CLIENT_AND_MESSAGE))},
        "note(self, client, message) must be note(self, message)",
    ),
    "a tick with parameters": (
        lambda base: {"tick": every(1)(method(base, "self, number"))},
        "tick(self, number) must be tick(self)",
    ),
    "an answer to two payloads": (
        lambda base: {"ask": answers(method(base, "self, one, two"))},
        "it must be ask(self) or ask(self, payload)",
    ),
    "an __init__ with parameters": (
        lambda _: {"__init__": method(Room, "self, name")},
        "what a room is started with goes to on_start",
    ),
    "a hook that is no method": (
        lambda _: {"on_text": "text"},
        "on_text is not a method but 'text'",
    ),
    "a hook that yields": (
        lambda base: {"on_text": method(base, "self, client, text", "yield")},
        "on_text has a `yield`, so calling it would run nothing of it",
    ),
    "a hook with a mark": (
        lambda base: {"on_text": on(Say)(method(base, CLIENT_AND_MESSAGE))},
        "on_text is what every room has, without @on; rename it",
    ),
    "a method of the name of a call": (
        lambda base: {"end": on(Say)(method(base, CLIENT_AND_MESSAGE))},
        "end is what every room has, without @on; rename it",
    ),
    "one tag twice": (
        lambda base: {
            "one": on(Say)(method(base, CLIENT_AND_MESSAGE)),
            "two": on(SayAgain)(method(base, CLIENT_AND_MESSAGE)),
        },
        "Say and SayAgain both have the tag 'say'",
    ),
    "one Struct twice": (
        lambda base: {
            "one": on(Say)(method(base, CLIENT_AND_MESSAGE)),
            "two": on(Say)(method(base, CLIENT_AND_MESSAGE)),
        },
        "one and two both have @on(Say)",
    ),
    "one topic twice": (
        lambda base: {
            "one": on("note")(method(base, "self, message")),
            "two": on("note")(method(base, "self, message")),
        },
        "one and two both have @on('note')",
    ),
    "two tag fields": (
        lambda base: {
            "one": on(Say)(method(base, CLIENT_AND_MESSAGE)),
            "two": on(Kinded)(method(base, CLIENT_AND_MESSAGE)),
        },
        "Kinded has it in 'kind' and others in 'type'; give them the same tag_field",
    ),
    "tags of two kinds": (
        lambda base: {
            "one": on(Say)(method(base, CLIENT_AND_MESSAGE)),
            "two": on(Numbered)(method(base, CLIENT_AND_MESSAGE)),
        },
        "the types of its @on do not go together: ",
    ),
    "sleep_after": (
        lambda _: {"sleep_after": 300},
        "sleep_after is reserved: rooms cannot sleep yet",
    ),
    "on_save": (
        lambda base: {"on_save": method(base)},
        "on_save is reserved: rooms cannot sleep yet",
    ),
    "on_load": (
        lambda base: {"on_load": method(base, "self, state")},
        "on_load is reserved: rooms cannot sleep yet",
    ),
}


@FACES
@pytest.mark.parametrize("name", WRONG)
def test_what_could_not_work_is_refused_when_the_class_is_made(base: Any, name: str) -> None:
    body, error = WRONG[name]
    with pytest.raises(TypeError) as caught:
        made(base, **body(base))
    assert str(caught.value).startswith("Made: ")
    assert error in str(caught.value)


@FACES
@pytest.mark.parametrize("name", ["on_join", "say", "tick", "ask"])
def test_plain_and_async_methods_are_not_mixed(base: Any, name: str) -> None:
    other = aio.Room if base is Room else Room
    marks: dict[str, Any] = {"say": on(Say), "tick": every(1), "ask": answers}
    parameters = {"on_join": "self, client", "say": CLIENT_AND_MESSAGE}.get(name, "self")
    mark = marks.get(name, lambda one: one)
    right = "derive from wsrelay.aio.Room" if base is Room else "derive from wsrelay.Room"
    with pytest.raises(TypeError, match=f"^Made: {name} is .*{re.escape(right)}"):
        made(base, **{name: mark(method(other, parameters))})
    made(base, **{name: mark(method(base, parameters)), "helper": method(other)})


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (
            Untagged,
            "@on(Untagged): the Struct has no tag .* class Untagged(msgspec.Struct, tag='unta",
        ),
        (3, "@on(3): it takes a msgspec.Struct with a tag, or a topic as text"),
        (dict, "it takes a msgspec.Struct with a tag, or a topic as text"),
        ("", "@on(''): it takes the topic of messages that processes send"),
        ("ws.join", "@on('ws.join'): it takes the topic of messages that processes send"),
    ],
)
def test_what_on_cannot_take_is_refused(what: Any, error: str) -> None:
    with pytest.raises(TypeError) as caught:
        on(what)
    for part in error.split(" .* "):
        assert part in str(caught.value)


def test_on_takes_the_relays_errors() -> None:
    assert made(Room, error=on("ws.error")(method(Room, "self, message")))


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        ("1s", "TypeError: @every('1s'): it takes a number of seconds, like 1 / 30"),
        (True, "TypeError: @every(True): it takes a number of seconds, like 1 / 30"),
        (0, "ValueError: @every(0): the shortest interval is 0.001 s"),
        (float("nan"), "ValueError: @every(nan): the shortest interval is 0.001 s"),
        (float("inf"), "ValueError: @every(inf): the shortest interval is 0.001 s"),
    ],
)
def test_what_every_cannot_take_is_refused(seconds: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        every(seconds)
    assert f"{type(caught.value).__name__}: {caught.value}" == error


def test_a_mark_stands_before_a_method_and_alone() -> None:
    with pytest.raises(TypeError, match="is not a method: @every stands before a `def`"):
        every(1)(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="method has @on already; one method, one of these"):
        every(1)(on("note")(method(Room, "self, message")))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["User", 3])
def test_metadata_of_what_is_no_type_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Room\[|not a|is not"):

        class Wrong(Room[kind]):
            pass


def test_both_faces_have_the_hooks_and_calls_of_the_table() -> None:
    for base in (Room, aio.Room):
        assert {name for name in vars(base) if name.startswith("on_")} == set(HOOKS)
    public = {name for name in dir(Room) if not name.startswith("_")}
    assert {name for name in dir(aio.Room) if not name.startswith("_")} - public == {"start_soon"}


@FACES
def test_a_class_that_only_this_process_knows_can_be_pickled_with_what_it_declares(
    base: Any,
) -> None:
    class Here(base[User]):  # type: ignore[misc]
        say = on(Say)(method(base, CLIENT_AND_MESSAGE))
        on_text = method(base, "self, client, text")

    there = pickle.loads(cloudpickle.dumps(Here))  # noqa: S301 - ours
    assert there._wsrelay_declaration == Here._wsrelay_declaration
    assert there().clients.get("{gateway|1}") is None


# Clients of a room


def test_the_clients_of_a_room_are_found_by_any_pid_and_iterated_in_order() -> None:
    room = made(Room)()
    one, two = Client("{gateway|1}"), Client("{gateway|2}")
    room.clients.by_pid.update({one: one, two: two})
    assert list(room.clients) == [one, two]
    assert len(room.clients) == 2
    assert str(one) in room.clients
    assert "{gateway|3}" not in room.clients
    assert room.clients.get("{gateway|1}") is one
    for client in room.clients:
        room.clients.by_pid.pop(client)  # what comes in the middle changes nothing of the loop
    assert not room.clients
    assert issubclass(InvalidMessage, ValueError)


# When ticks are due


def test_ticks_rest_while_nobody_is_there_and_do_not_drift() -> None:
    schedule = Schedule({"tick": Every(0.5), "always": Every(2.0, when_empty=True)}, 100.0)
    assert schedule.left(100.0) == 2.0
    schedule.look(is_empty=False, now=101.0)
    assert schedule.left(101.0) == 0.5
    assert schedule.left(101.6) == 0
    assert schedule.take(101.6) == "tick"
    assert schedule.left(101.6) == pytest.approx(0.4)
    assert [schedule.take(103.1), schedule.take(103.1)] == ["always", "tick"]
    assert schedule.left(103.1) == pytest.approx(0.4)  # those of 102.5 and 103.0 were missed
    schedule.look(is_empty=True, now=103.2)
    assert schedule.left(103.2) == pytest.approx(0.8)
    schedule.look(is_empty=False, now=110.0)
    assert schedule.left(104.0) == 0


def test_without_ticks_nothing_is_waited_for() -> None:
    schedule = Schedule({"tick": Every(0.5)}, 100.0)
    schedule.look(is_empty=True, now=101.0)
    assert schedule.left(101.0) is None


def test_a_room_leaves_all_names_but_one_to_its_subclass() -> None:
    for base in (Room, aio.Room):
        assert vars(made(base)()).keys() == {"clients"}
        ours = {name for one in base.__mro__ for name in vars(one) if name.startswith("_")}
        assert all(name.startswith(("__", "_wsrelay", "_is_protocol")) for name in ours)


def test_what_cannot_be_sent_is_refused_even_if_nobody_is_there() -> None:
    with pytest.raises(PayloadError, match="neither str nor bytes"):
        made(Room)().broadcast(3)
    with pytest.raises(PayloadError, match=r"value: builtins\.object is not data"):
        made(Room)().broadcast_json(object())
