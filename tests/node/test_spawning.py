from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrelay.errors import InvalidTarget, PayloadError
from wsrelay.values.targets import Target
from wsrelay.wire.code import pack_target, unpack_target

Unpacked = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _loads_nothing(target: Target) -> Callable[..., Any]:
    raise AssertionError(f"{target} was loaded, and no text was given")


def _across(target: Any, *args: Any, **kwargs: Any) -> Unpacked:
    """Pack a callable and unpack it as a worker does."""
    text, code, _ = pack_target(target, args, kwargs)
    assert text is None
    return unpack_target(text, code, _loads_nothing)


def test_a_closure_arrives_with_what_it_closes_over() -> None:
    greeting = ["hello"]

    def greet(name: str) -> str:
        return f"{greeting[0]} {name}"

    function, args, kwargs = _across(greet, "Ada")
    greeting[0] = "changed after packing"
    assert function(*args, **kwargs) == "hello Ada"


def test_a_lambda_and_a_bound_method_can_be_spawned() -> None:
    function, args, kwargs = _across(lambda one, *, two: one + two, 1, two=2)
    assert function(*args, **kwargs) == 3
    function, args, kwargs = _across("text".upper)
    assert function(*args, **kwargs) == "TEXT"


def test_a_text_names_the_function_that_the_worker_loads() -> None:
    text, code, _ = pack_target("package.app:room", (), {})
    assert text == "package.app:room"
    asked: list[Target] = []

    def load(target: Target) -> Callable[..., Any]:
        asked.append(target)
        return print

    assert unpack_target(text, code, load) == (print, (), {})
    assert asked == [Target("room", module="package.app")]


def test_nothing_is_pickled_for_a_text_without_arguments() -> None:
    assert pack_target("app:room", (), {}) == ("app:room", b"", "")


_ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["app:room", "/srv/chat.py:room", len]),
    st.lists(_ARGUMENTS, max_size=3),
    st.dictionaries(st.text(), _ARGUMENTS, max_size=3),
)
def test_arguments_arrive_as_they_were_given(
    target: Any, args: list[Any], kwargs: dict[str, Any]
) -> None:
    text, code, _ = pack_target(target, tuple(args), kwargs)
    _, there, named = unpack_target(text, code, lambda _: print)
    assert (there, named) == (tuple(args), kwargs)


def test_a_script_is_found_from_the_directory_of_the_spawner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path.resolve()
    monkeypatch.chdir(here)
    text, *_ = pack_target("handlers/chat.py", (), {})
    assert text == f"{here}/handlers/chat.py:handler"
    text, *_ = pack_target("./handlers/../chat.py:room", (), {})
    assert text == f"{here}/chat.py:room"


@pytest.mark.parametrize("target", ["app", "", "dir/chat:room", "app::room"])
def test_a_malformed_text_is_refused_at_the_spawner(target: str) -> None:
    with pytest.raises(InvalidTarget):
        pack_target(target, (), {})


@pytest.mark.parametrize("target", [None, 1, b"app:room", ["app:room"], Path("chat.py")])
def test_what_is_neither_text_nor_callable_is_refused_and_named(target: object) -> None:
    with pytest.raises(InvalidTarget, match="nor a callable"):
        pack_target(target, (), {})


def test_what_cannot_be_pickled_is_a_payload_error_at_the_spawner() -> None:
    lock = threading.Lock()
    for target, args in ((lambda: lock, ()), ("app:room", (lock,)), (print, (lock,))):
        with pytest.raises(PayloadError, match="cannot be sent to another process"):
            pack_target(target, args, {})
