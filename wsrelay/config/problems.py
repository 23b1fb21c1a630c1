"""What is wrong with a configuration, and where."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from wsrelay.values.spelling import nearest

__all__ = ["ConfigError", "ConfigProblem", "explained"]


class ConfigProblem(NamedTuple):
    """One mistake; `entry` is an id or empty, `key` is a dotted path of keys or empty."""

    file: Path
    line: int
    entry: str
    key: str
    message: str

    def __str__(self) -> str:
        place = os.path.relpath(self.file)
        shown = place if len(place) < len(str(self.file)) else str(self.file)
        parts = [f"{shown}:{self.line}" if self.line else shown]
        parts += [part for part in (self.entry, self.key and f"key {self.key!r}") if part]
        return ": ".join([*parts, self.message])


class ConfigError(Exception):
    """Configuration files have mistakes; `problems` lists all of them, by file and line."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = list(problems)


_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


def explained(error: Any, keys: Iterable[str]) -> str:
    """Say in our own words what pydantic found; `keys` are the valid ones."""
    key, given, context = error["loc"], error["input"], error.get("ctx", {})
    prefix, _, _ = error["type"].partition("_")
    message: str = f"{error['msg']}, not {given!r:.60}"
    match error["type"]:
        case "extra_forbidden":
            message = f"unknown key; {nearest(str(key[-1]), keys)}"
        case "too_short":
            message = "must not be empty"
        case "missing":
            message = "is missing"
        case "greater_than_equal":
            message = f"must be at least {context['ge']}, not {given!r}"
        case "greater_than":
            message = f"must be more than {context['gt']}, not {given!r}"
        case "less_than_equal":
            message = f"must be at most {context['le']}, not {given!r}"
        case "literal_error":
            message = f"must be {context['expected'].replace(chr(39), '')}, not {given!r:.60}"
        case "value_error":
            message = str(context["error"])
        case _ if prefix in _TYPES:
            message = f"must be {_TYPES[prefix]}, not {given!r:.60}"
    return message
