"""Structs of a script that only the spawner has, on the way to a worker."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest

from wsrelay import PayloadError
from wsrelay.wire.code import pack_target, unpack_target

SCRIPT = """
from __future__ import annotations
import msgspec
from dataclasses import dataclass
from datetime import date
from typing import Generic, TypeVar

class Item(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    a_number: int = 3
    when: date | None = None
    tags: list[str] = msgspec.field(default_factory=list, name="labels")

    def doubled(self):
        return Item(a_number=2 * self.a_number)

class Say(msgspec.Struct, tag="say", tag_field="kind", forbid_unknown_fields=True):
    "What is said."
    text: str
    items: list[Item] = []

class Louder(Say, tag="louder"):
    volume: float = 1.0

class Tree(msgspec.Struct):
    name: str
    below: list[Tree] = []

@dataclass
class User:
    name: str

T = TypeVar("T")

class Positive(msgspec.Struct, Generic[T]):
    number: T

    def __post_init__(self):
        if self.number <= 0:
            raise ValueError("too small")

class Lost(msgspec.Struct):
    what: Nowhere

def use(text, kind=Say):
    return kind, msgspec.json.decode(text, type=kind), Item(a_number=2).doubled()
"""


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """A script as the spawner has it; whoever unpickles what it packs has none."""
    module = ModuleType("script_of_a_test")
    sys.modules[module.__name__] = module
    exec(SCRIPT, vars(module))  # noqa: S102 - ours
    module.__name__ = "__main__"
    for value in vars(module).values():
        if getattr(value, "__module__", None) == "script_of_a_test":
            value.__module__ = "__main__"
    main, sys.modules["__main__"] = sys.modules["__main__"], module
    yield module
    sys.modules["__main__"] = main
    del sys.modules["script_of_a_test"]


def options(kind: Any) -> dict[str, Any]:
    config = kind.__struct_config__
    return {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}


def sent(script: ModuleType, *args: Any) -> Any:
    """Do what a worker does with the function of the script."""
    _, code, _ = pack_target(script.use, args, {})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        function, given, named = unpack_target(None, code, lambda _: print)
        return function(*given, **named)
    finally:
        sys.modules["__main__"] = script


def test_a_struct_keeps_its_tag_its_options_its_defaults_and_its_methods(
    script: ModuleType,
) -> None:
    kind, value, doubled = sent(script, '{"kind": "say", "text": "a", "items": [{"aNumber": 5}]}')
    assert kind is not script.Say
    assert options(kind) == options(script.Say)
    assert (kind.__doc__, kind.__qualname__) == ("What is said.", "Say")
    assert (value.text, value.items[0].a_number, value.items[0].tags) == ("a", 5, [])
    assert doubled.a_number == 4
    assert options(type(doubled)) == options(script.Item)
    assert msgspec.json.encode(doubled) == b'{"aNumber":4,"when":null,"labels":[]}'
    with pytest.raises(TypeError, match="positional"):
        type(doubled)(3)
    with pytest.raises(AttributeError):
        doubled.a_number = 3
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        sent(script, '{"kind": "say", "text": "a", "more": 3}')


def test_a_struct_of_a_struct_and_one_that_speaks_of_itself_go_too(script: ModuleType) -> None:
    kind, value, _ = sent(script, '{"kind": "louder", "text": "a"}', script.Louder)
    assert (value.volume, kind.__struct_config__.tag) == (1.0, "louder")
    _, value, _ = sent(script, '{"name": "a", "below": [{"name": "b"}]}', script.Tree)
    assert value.below[0].name == "b"


def test_a_struct_checks_itself_and_can_be_generic(script: ModuleType) -> None:
    kind, value, _ = sent(script, '{"number": 3}', script.Positive)
    assert (value.number, msgspec.convert({"number": 4}, kind[int]).number) == (3, 4)
    with pytest.raises(msgspec.ValidationError, match="too small"):
        sent(script, '{"number": 0}', script.Positive)
    with pytest.raises(msgspec.ValidationError, match="Expected `int`, got `str`"):
        msgspec.convert({"number": "3"}, kind[int])


def test_a_struct_whose_types_are_not_known_is_refused(script: ModuleType) -> None:
    with pytest.raises(PayloadError, match="name 'Nowhere' is not defined"):
        sent(script, "{}", script.Lost)


def test_a_dataclass_that_msgspec_has_converted_to_goes_too(script: ModuleType) -> None:
    msgspec.convert({"name": "ann"}, script.User)
    _, value, _ = sent(script, '{"name": "bob"}', script.User)
    assert value.name == "bob"


def test_a_struct_that_can_be_imported_goes_by_its_name() -> None:
    _, code, _ = pack_target(print, (msgspec.structs.FieldInfo,), {})
    function, given, _ = unpack_target(None, code, lambda _: print)
    assert (function, given) == (print, (msgspec.structs.FieldInfo,))
    assert b"FieldInfo" in pickle.loads(code)[1]  # noqa: S301 - ours
