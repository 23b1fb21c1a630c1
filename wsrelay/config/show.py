"""A configuration as `wsrelay check` prints it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .configuration import Configuration

__all__ = ["rows"]


def rows(configuration: Configuration) -> list[tuple[str, str, str, str]]:
    """Return the id, kind, `file:line` and resolved values of each entry.

    The options of middleware are left out: they may hold secrets.
    """
    rows = [
        (
            name,
            entry.kind,
            f"{os.path.relpath(configuration.where[name].file)}:{configuration.where[name].line}",
            _shown({key: value for key, value in entry if key not in _ELSEWHERE}),
        )
        for name, entry in configuration.entries.items()
    ]
    cluster, at = configuration.cluster, configuration.cluster_at
    if cluster is not None and at is not None:
        told = repr(cluster.options()).removeprefix("Cluster(").removesuffix(")")
        rows.append(("cluster", "", f"{os.path.relpath(at.file)}:{at.line}", told))
    return rows


_ELSEWHERE = {"id", "name", "kind", "options", "post_options"}


def _shown(values: dict[str, Any]) -> str:
    shown = ((key, _value(value)) for key, value in values.items())
    return ", ".join(f"{key}={text}" for key, text in shown if text)


def _value(value: Any) -> str:
    match value:
        case None | [] | {}:
            return ""
        case BaseModel():
            inner = _shown(dict(value))
            return f"({inner})" if inner else ""
        case list():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case Path():
            return os.path.relpath(value)
        case float():
            return f"{value:g}"
    return str(value)
