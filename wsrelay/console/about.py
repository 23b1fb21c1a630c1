"""Everything about one process, as the page of a process shows it."""

from __future__ import annotations

from typing import Any, Final

from .watch import NodesWatch
from .watched import WatchedProcess

__all__ = ["about"]

_MOST: Final = 20
"""Names, groups and other processes of each kind that are told."""

_LONGEST: Final = 300
"""Characters of each of them."""


def about(process: WatchedProcess, watch: NodesWatch) -> dict[str, Any]:
    """Return what is told of a process beside what a list of processes has.

    PIDs go with what people call them. What its node does not know is left out.
    """
    info, node = process.info, watch.nodes[process.node]
    told: dict[str, Any] = {
        "names": [name[:_LONGEST] for name in info["names"][:_MOST]],
        "full_target": info["target"][:1000],
        "os_pid": info["os_pid"],
        "idle": info.get("idle"),
        "waiting": info.get("waiting"),
        "received": info.get("received"),
        "sent": info.get("sent"),
        "parent": info["parent"] and _named([info["parent"]], watch),
        "children": _named(
            [one.pid for one in watch.processes() if one.info["parent"] == process.pid], watch
        ),
        "unknown": sorted(node.unknown & {"/process", "/ends"}),
    }
    if detail := node.detail:
        told |= _detailed(detail, watch)
    return {name: value for name, value in told.items() if value not in (None, [], {})}


def _detailed(detail: dict[str, Any], watch: NodesWatch) -> dict[str, Any]:
    code, timers, mailbox = detail["code"], detail["timers"], detail["mailbox"]
    place = code.get("file") and f"{code['file']}:{code['line'] or 1}"
    return {
        "code": place,
        "groups": [name[:_LONGEST] for name in detail["groups"]["first"][:_MOST]],
        **{
            kind: _named(detail[kind]["first"], watch)
            for kind in ("links", "monitors", "monitored_by")
        },
        "timers": timers["count"] or None,
        "next_timer": timers["next_due"] and round(timers["next_due"]),
        "mail_limit": mailbox["limit"],
        "called_by": [_call(one, "caller") for one in detail["called_by"][:_MOST]],
        "calls": [_call(one, "callee") for one in detail["calls"][:_MOST]],
        "limits": {name: str(value) for name, value in detail["limits"].items()},
        "options": {
            name: str(value)[:_LONGEST]
            for name, value in detail["options"].items()
            if name not in _NOT_TOLD and value not in (None, "", [], {})
        },
    }


_NOT_TOLD: Final = frozenset({"name", "targets", "limits", "isolation"})
"""Options that stand elsewhere on the page, or are too long for it."""


def _named(pids: list[str], watch: NodesWatch) -> dict[str, str]:
    """Return the first of these PIDs, each with what people call it."""
    named = {}
    for pid in pids[:_MOST]:
        process = watch.process(pid)
        named[pid] = (pid if process is None else process.name)[:_LONGEST]
    return named


def _call(call: dict[str, Any], other: str) -> str:
    return f"{call['topic'][:_LONGEST]} ({call[other]}), {call['waits']:.0f} s"
