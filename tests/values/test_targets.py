from __future__ import annotations

import functools
import re
import sys
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrelay.errors import InvalidTarget
from wsrelay.values.targets import Target, label, parse

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
FOLDERS = st.lists(st.text("abcXYZ09 ._-:é", min_size=1, max_size=5), max_size=3)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("app:room", Target("room", module="app")),
        ("package.app:room", Target("room", module="package.app")),
        ("chat.py", Target("handler", script="chat.py")),
        ("chat.py:room", Target("room", script="chat.py")),
        ("./chat.py:room", Target("room", script="./chat.py")),
        ("../handlers/chat.py", Target("handler", script="../handlers/chat.py")),
        ("/srv/my app/chat.py:room", Target("room", script="/srv/my app/chat.py")),
        ("/srv/12:30/chat.py", Target("handler", script="/srv/12:30/chat.py")),
        ("/srv/12:30/chat.py:room", Target("room", script="/srv/12:30/chat.py")),
        ("12:30.py", Target("handler", script="12:30.py")),
        ("größe:länge", Target("länge", module="größe")),
    ],
)
def test_a_script_or_a_module_and_its_function_are_told_apart(text: str, target: Target) -> None:
    assert parse(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "::",
        ":room",
        "app",
        "app:",
        "app::room",
        "app:room:",
        "chat.py:",
        "chat.py:1room",
        "chat.py:ro om",
        "chat.py:a.b",
        "chat.py:room()",
        "chat.txt",
        "1app:room",
        "app.:room",
        ".app:room",
        "a b:room",
        "app\n:room",
        "app:room\n",
        "dir/app:room",
        ".py",
        ".py:room",
        "dir/.py:room",
    ],
)
def test_text_of_neither_form_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidTarget, match=re.escape(repr(text))):
        parse(text)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4), NAMES)
def test_every_dotted_name_with_a_function_is_a_module(parts: list[str], function: str) -> None:
    module = ".".join(parts)
    # `a.py:f` means a script, whatever else it could mean.
    expected = (
        Target(function, script=module)
        if len(parts) > 1 and parts[-1] == "py"
        else Target(function, module=module)
    )
    assert parse(f"{module}:{function}") == expected


@settings(deadline=None)
@given(FOLDERS, NAMES, NAMES)
def test_every_path_to_a_script_is_a_script(folders: list[str], name: str, function: str) -> None:
    path = "/".join([*folders, f"{name}.py"])
    assert parse(path) == Target("handler", script=path)
    assert parse(f"{path}:{function}") == Target(function, script=path)


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab.py:/_1 ", max_size=16))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = parse(text)
    except InvalidTarget:
        return
    assert (target.script is None) != (target.module is None)
    assert target.function.isidentifier()
    assert text in (str(target), target.script)


def test_a_target_is_written_as_it_is_read() -> None:
    for text in ("app:room", "chat.py:room", "/srv/12:30/chat.py:handler"):
        assert str(parse(text)) == text
        assert parse(str(parse(text))) == parse(text)
    assert str(parse("chat.py")) == "chat.py:handler"


class _Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


class _Odd:
    """Has no attribute of which it can be asked."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> None:
        raise self._error(name)

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (parse, "wsrelay.values.targets:parse"),
        (_Callable, f"{__name__}:_Callable"),
        (_Callable(), f"{__name__}:_Callable"),
        (_Callable().method, f"{__name__}:_Callable.method"),
        (functools.partial(functools.partial(parse, ""), 1), "wsrelay.values.targets:parse"),
        (lambda: None, f"{__name__}:<lambda>"),
        (len, "builtins:len"),
        (Mock(), "unittest.mock:Mock"),
        (str.upper, "builtins:str.upper"),
        ([].append, "builtins:list.append"),
        pytest.param(_Odd(RuntimeError), "", id="raises"),
        pytest.param(_Odd(AttributeError), f"{__name__}:_Odd", id="has nothing"),
    ],
)
def test_a_callable_is_shown_by_where_it_is_from(target: Any, shown: str) -> None:
    assert label(target) == shown


def test_the_label_of_a_callable_can_be_written_whatever_its_name() -> None:
    def work() -> None: ...

    work.__qualname__ = "x" * 10**6
    assert len(label(work)) == 200
    work.__qualname__ = "\udc80"
    assert label(work) == f"{__name__}:\\udc80"


def test_the_label_of_a_script_whose_name_was_taken_is_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work() -> None: ...

    work.__module__, work.__qualname__ = "wsrelay.values.scripts.json", "work"
    monkeypatch.setitem(sys.modules, work.__module__, Mock(__file__="/srv/json.py"))
    assert label(work) == "/srv/json.py:work"
