"""What a `logging` record holds besides its message, as data; and the format of a line."""

from __future__ import annotations

import itertools
import logging
from typing import Any, Final

import msgspec

from . import payload

__all__ = [
    "LONGEST_NAME",
    "MOST_EXTRA",
    "PLAIN",
    "clean",
    "extra_of",
    "fields",
    "fields_of",
    "is_extra",
    "text_of",
]

PLAIN: Final = "%(asctime)s %(levelname)-7s %(message)s"
"""The format of a log line."""

MOST_EXTRA: Final = 16
"""Fields of one record."""

LONGEST_NAME: Final = 100
"""Characters of the name of a logger, a level or a field."""

_LARGEST_VALUE: Final = 1024
"""Bytes of a field as JSON; a field that is larger, or not data, is cut to its first characters."""

_LONGEST_VALUE: Final = 200
"""How many characters those are."""

_OURS: Final = "wsrelay_"

_MOST_NAMES: Final = 10

_STANDARD: Final = {
    *vars(logging.LogRecord("", 0, "", 0, "", None, None)),
    "asctime",
    "message",
    "taskName",
}

_message: Final = logging.Formatter("%(message)s")


def fields(**about: Any) -> dict[str, Any]:
    """Return what is known about a process in the form of `extra` for `logging`.

    A record may have `pid`, `names`, `target`, `os_pid`, `host`, `exit` (the kind of an end), and
    `node`, which says it, if that is another one than the process's; empty ones are left out.
    """
    names = itertools.islice(about.pop("names", ()), _MOST_NAMES)
    return {f"{_OURS}{k}": v for k, v in {**about, "names": sorted(names)}.items() if v}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what `fields` put into the record, by short names."""
    return {
        name.removeprefix(_OURS): str(value) if name == f"{_OURS}pid" else value
        for name, value in vars(record).items()
        if isinstance(name, str) and name.startswith(_OURS)
    }


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that the record was given as `extra`: bounded data that JSON can hold."""
    given = (item for item in vars(record).items() if is_extra(item[0]))
    return {
        clean(name, LONGEST_NAME): _data(value)
        for name, value in itertools.islice(given, MOST_EXTRA)
    }


def is_extra(name: Any) -> bool:
    """Whether it can be a field given as `extra`, that is, not one of `logging` or wsrelay."""
    return name not in _STANDARD and isinstance(name, str) and not name.startswith(_OURS)


def text_of(record: logging.LogRecord) -> str:
    """Return the record's message with its traceback below it."""
    return _message.format(record)


def clean(text: str, longest: int) -> str:
    """Return text that UTF-8 can represent, cut to so many characters."""
    if len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


def _data(value: Any) -> Any:
    try:
        data = payload.decode(payload.encode(value))
        if len(msgspec.json.encode(data)) <= _LARGEST_VALUE:
            return data
    except (TypeError, ValueError, RecursionError):
        pass  # it is not data, or has a key that JSON cannot represent
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # noqa: BLE001 - user code raised it, and the record matters more
        text = f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"
    return clean(text, _LONGEST_VALUE)
