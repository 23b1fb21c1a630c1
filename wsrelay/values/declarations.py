"""What a subclass of `Room` declares, read once, when the class is made.

A method is a hook by its name (`on_join`), or by a mark that a decorator has left on it (`on`,
`every`, `answers`). Whatever could not work is a `TypeError` here and not at the first message.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, ForwardRef, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from .message import ERROR, sendable
from .spelling import nearest

__all__ = ["HOOKS", "Answers", "Declaration", "Every", "On", "declared", "mark", "type_name"]

HOOKS: Final[dict[str, tuple[str, ...] | None]] = {
    "on_start": None,
    "on_join": ("client",),
    "on_leave": ("client", "code", "reason"),
    "on_text": ("client", "text"),
    "on_binary": ("client", "data"),
    "on_invalid": ("client", "error"),
    "on_message": ("message",),
    "on_event": ("event",),
    "on_heartbeat": ("client", "uptime", "count"),
    "on_stop": ("reason",),
}
"""The hooks, each with what it is called with (None: whatever the room was started with)."""

_RESERVED: Final = ("sleep_after", "on_save", "on_load")
"""Names for rooms that sleep, which they cannot yet."""

_MARK: Final = "__wsrelay_mark__"

_SHORTEST: Final = 0.001
"""Seconds between two ticks."""

F = TypeVar("F", bound=Callable[..., Any])


class On(Struct, frozen=True):
    """Marks a method that takes a client's JSON text of that Struct, or messages of that topic."""

    what: Any

    def __post_init__(self) -> None:
        _check_on(self.what)


class Every(Struct, frozen=True):
    """Marks a method that is called every so many seconds."""

    seconds: float
    when_empty: bool = False

    def __post_init__(self) -> None:
        number = self.seconds
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"@every({number!r:.80}): it takes a number of seconds, like 1 / 30")
        if not _SHORTEST <= number < math.inf:
            raise ValueError(f"@every({number!r:.80}): the shortest interval is {_SHORTEST:g} s")


class Answers(Struct, frozen=True):
    """Marks a method that answers calls of its name."""


class Declaration(Struct):
    """What a class declares. Methods are given by their names, so that a subclass can replace them.

    It can be pickled, since a class that no other process can import is pickled whole.
    """

    kinds: dict[Any, str]
    """The method of each Struct."""
    topics: dict[str, str]
    """The method of each topic of process messages."""
    ticks: dict[str, Every]
    answers: dict[str, Any]
    """The parameter of each method that answers calls, with its type; None if it has none."""
    own: frozenset[str]
    """The hooks that the class has itself."""
    metadata: Any
    """The type to which clients' metadata is converted; None if it stays as it is."""

    def questions(self, cls: type) -> dict[str, tuple[bool, Any, bool]]:
        """Return of each method that answers: does it take a payload, of which type, or none.

        Raises `TypeError`.
        """
        found = {}
        for name, given in self.answers.items():
            if given is None:
                found[name] = False, Any, True
                continue
            try:
                one = _resolved(given, getattr(cls, name))
            except NameError as error:
                raise TypeError(
                    f"{cls.__qualname__}: {name}({given}) cannot convert a payload: {error}"
                ) from None
            kind = Any if one.annotation is one.empty else one.annotation
            found[name] = True, kind, one.default is not one.empty
        return found

    @property
    def tag_field(self) -> str:
        """The JSON key of the tag of all Structs."""
        return next((str(kind.__struct_config__.tag_field) for kind in self.kinds), "")

    @property
    def tags(self) -> dict[str | int, Any]:
        """Each Struct by its tag."""
        return {kind.__struct_config__.tag: kind for kind in self.kinds}

    @property
    def union(self) -> Any:
        """The type of a client's text."""
        return typing.Union[tuple(self.kinds)]  # noqa: UP007 - of as many as there are


def mark(method: F, what: On | Every | Answers) -> F:
    """Mark a method; raises `TypeError` for what is none, and for one that has a mark."""
    if not inspect.isfunction(method):
        raise TypeError(f"{method!r:.80} is not a method: {_name(what)} stands before a `def`")
    if (there := mark_of(method)) is not None:
        raise TypeError(
            f"{method.__qualname__} has {_name(there)} already; one method, one of these"
        )
    setattr(method, _MARK, what)
    return method


def mark_of(method: Any) -> On | Every | Answers | None:
    """Return a method's mark."""
    return getattr(method, _MARK, None)


def _name(what: On | Every | Answers) -> str:
    return f"@{type(what).__name__.lower()}"


def declared(cls: type, base: type, *, is_async: bool) -> Declaration:
    """Read a subclass of the class `base`, all of whose hooks are `async def` or none.

    Raises `TypeError`, which names the class, the method, and what is right.
    """
    try:
        return _read(cls, base, is_async=is_async)
    except TypeError as error:
        raise TypeError(f"{cls.__qualname__}: {error}") from None


def _read(cls: type, base: type, *, is_async: bool) -> Declaration:
    found = Declaration({}, {}, {}, {}, frozenset(), _checked(_metadata(cls, base)))
    own = set()
    for name, method, what in _members(cls, base):
        if name in _RESERVED:
            raise TypeError(f"{name} is reserved: rooms cannot sleep yet")
        if what is None and name not in HOOKS:
            if name.startswith("on_") and callable(method):
                raise TypeError(f"there is no hook {name}: {nearest(name, HOOKS)} {_ALL}")
            continue
        if what is not None and hasattr(base, name):
            raise TypeError(f"{name} is what every room has, without {_name(what)}; rename it")
        _check_kind(name, method, is_async=is_async)
        match what:
            case None:
                own.add(name)
                _check_parameters(name, method, HOOKS[name])
            case On():
                _add(found, name, what.what)
                _check_parameters(
                    name,
                    method,
                    ("message",) if isinstance(what.what, str) else ("client", "message"),
                )
            case Every():
                found.ticks[name] = what
                _check_parameters(name, method, ())
            case Answers():
                found.answers[name] = _parameter(name, method)
    _check_parameters("__init__", inspect.getattr_static(cls, "__init__"), ())
    found.own = frozenset(own)
    _check_structs(found)
    return found


_ALL: Final = f"(the hooks are {', '.join(HOOKS)})"


def _members(cls: type, base: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, method and mark of all that the class has beyond the base.

    A method that replaces a marked one keeps its mark.
    """
    marks: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        if one in base.__mro__:
            continue
        for name, value in vars(one).items():
            marks[name] = mark_of(value) or marks.get(name)
    for name, what in marks.items():
        yield name, inspect.getattr_static(cls, name), what


def _check_kind(name: str, method: Any, *, is_async: bool) -> None:
    """Raise if it is not the kind of function that the room calls."""
    if not inspect.isfunction(method):
        raise TypeError(f"{name} is not a method but {method!r:.80}")
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError(f"{name} has a `yield`, so calling it would run nothing of it")
    if inspect.iscoroutinefunction(method) is is_async:
        return
    if is_async:
        raise TypeError(
            f"{name} is a plain `def`: in a wsrelay.aio.Room, hooks are `async def`; "
            "derive from wsrelay.Room to have all of them plain"
        )
    raise TypeError(
        f"{name} is `async def`: in a wsrelay.Room, hooks are plain; "
        "derive from wsrelay.aio.Room to have all of them `async def`"
    )


def _check_parameters(name: str, method: Any, given: tuple[str, ...] | None) -> None:
    """Raise if the method cannot be called with these."""
    if given is None or not inspect.isfunction(method):
        return
    try:
        inspect.signature(method).bind(None, *given)
    except TypeError:
        right = ", ".join(("self", *given))
        more = "; what a room is started with goes to on_start" if name == "__init__" else ""
        raise TypeError(
            f"{name}{inspect.signature(method)} must be {name}({right}){more}"
        ) from None


def _parameter(name: str, method: Any) -> inspect.Parameter | None:
    """Return the parameter of a method that answers calls."""
    _, *others = inspect.signature(method).parameters.values()
    if len(others) > 1 or any(one.kind not in _POSITIONAL for one in others):
        raise TypeError(
            f"{name}{inspect.signature(method)} answers calls, which have one payload: "
            f"it must be {name}(self) or {name}(self, payload)"
        )
    if not others:
        return None
    try:
        return _resolved(others[0], method)
    except NameError:  # of a type that is defined after the class: it is looked up once more
        return others[0]


def _resolved(parameter: inspect.Parameter, method: Any) -> inspect.Parameter:
    """Return a parameter with its type; raises `NameError`, and `TypeError` for what is none."""
    kind = parameter.annotation
    if isinstance(kind, str):
        # Of this one alone: what it returns may be known to type checkers only.
        alone = types.SimpleNamespace(__annotations__={"it": kind})
        names = inspect.unwrap(method).__globals__
        kind = typing.get_type_hints(alone, names, include_extras=True)["it"]
    if kind is not parameter.empty:
        try:
            msgspec.msgpack.Decoder(kind)
        except TypeError as error:
            raise TypeError(f"{method.__name__}({parameter}): {error}") from None
    return parameter.replace(annotation=kind)


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _add(found: Declaration, name: str, what: Any) -> None:
    there: dict[Any, str] = found.topics if isinstance(what, str) else found.kinds
    if what in there:
        raise TypeError(f"{there[what]} and {name} both have @on({_shown(what)})")
    there[what] = name


def _shown(what: Any) -> str:
    return repr(what) if isinstance(what, str) else type_name(what)


def type_name(kind: Any) -> str:
    """Return the name of a type for people."""
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _check_on(what: Any) -> None:
    """Raise `TypeError` for what `on` cannot take."""
    if isinstance(what, str):
        if not what or (sendable(what).startswith("ws.") and what != ERROR):
            raise TypeError(
                f"@on({what!r}): it takes the topic of messages that processes send; what clients "
                f"do comes to the hooks {_ALL}"
            )
    elif not (isinstance(what, type) and issubclass(what, Struct)):
        raise TypeError(
            f"@on({what!r:.80}): it takes a msgspec.Struct with a tag, or a topic as text"
        )
    elif what.__struct_config__.tag is None:
        raise TypeError(
            f"@on({what.__qualname__}): the Struct has no tag that tells its JSON from others'; "
            f"write class {what.__name__}(msgspec.Struct, tag={what.__name__.lower()!r})"
        )


def _check_structs(found: Declaration) -> None:
    """Raise if a text could not be told to be of one of the Structs."""
    tags: dict[Any, Any] = {}
    for kind in found.kinds:
        field, tag = kind.__struct_config__.tag_field, kind.__struct_config__.tag
        if field != found.tag_field:
            raise TypeError(
                f"the tags of all @on must have one name, but {_shown(kind)} has it in {field!r} "
                f"and others in {found.tag_field!r}; give them the same tag_field"
            )
        if tag in tags:
            raise TypeError(
                f"{_shown(tags[tag])} and {_shown(kind)} both have the tag {tag!r}; "
                "a text could not be told to be of one of them"
            )
        tags[tag] = kind
    if tags:
        try:
            msgspec.json.Decoder(found.union)
        except TypeError as error:
            raise TypeError(f"the types of its @on do not go together: {error}") from None


def _metadata(cls: type, base: type) -> Any:
    """Return the type of metadata that a class gives its base, None if it gives none."""
    for alias in vars(cls).get("__orig_bases__", ()):
        origin = get_origin(alias)
        if isinstance(origin, type) and issubclass(origin, base):
            given = dict(zip(getattr(origin, "__parameters__", ()), get_args(alias), strict=False))
            inner = get_args(alias)[0] if origin is base else _metadata(origin, base)
            return given.get(inner, inner)
    for one in cls.__bases__:
        if issubclass(one, base) and one is not base:
            return _metadata(one, base)
    return None


def _checked(kind: Any) -> Any:
    """Return the type of metadata, None if they stay as they are; raises for what is no type."""
    if kind in (None, Any, dict, dict[str, Any]) or isinstance(kind, TypeVar):
        return None
    if isinstance(kind, str | ForwardRef):
        raise TypeError(f"Room[{kind!r}]: give the type itself, defined before the room")
    try:
        msgspec.msgpack.Decoder(kind)
    except TypeError as error:
        raise TypeError(f"Room[{kind!r}]: {error}") from None
    return kind
