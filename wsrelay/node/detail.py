"""Everything about one process, for an operator who looks at it."""

from __future__ import annotations

import heapq
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from wsrelay.errors import InvalidTarget
from wsrelay.values import targets
from wsrelay.values.pid import PID

from .calls import WaitingCall
from .info import CallInfo, CodeInfo, Excerpt, MailboxInfo, ProcessDetail, TimersInfo
from .node import Node
from .process import WorkerProcess
from .snapshot import host_info, process_info

__all__ = ["MOST_CLIENTS", "detail"]

MOST_CLIENTS: Final = 1_000
"""Clients, and texts of each kind, that are told of a process."""

_MOST_CALLS: Final = 100

_MOST_SOURCE: Final = 1024 * 1024
"""Bytes of a script that are looked through for a function."""


def detail(node: Node, pid: PID) -> ProcessDetail:
    """Return what the node knows about a living process; raises `KeyError` if it has none such.

    It must be called in the event loop's thread. That takes some 10 ms for a process with a
    thousand clients.
    """
    process, kernel, now = node.engine.processes[pid], node.kernel, time.monotonic()
    related = kernel.relations.of(pid)
    count, due = node.timers.of(pid)
    clients = (node.clients.client(one) for one in heapq.nsmallest(MOST_CLIENTS, process.clients))
    children = [one.pid for one in node.engine.processes.values() if one.parent == pid]
    waiting, own = node.calls.waiting, []
    if process.pending:
        own = [
            (callee, one)
            for callee, calls in waiting.items()
            for one in calls.values()
            if one.caller == pid
        ]
    return ProcessDetail(
        process=process_info(node, pid, now),
        started=time.time() - (now - process.started),
        host=host_info(node, pid.host),
        code=_code(node, process),
        names=_some(kernel.names.of(pid) or process.names),
        groups=_some(kernel.groups.of(pid)),
        clients=[one.describe() for one in clients if one is not None],
        children=_some(children),
        links=_some(related.linked),
        monitors=_some(related.unwatched),
        monitored_by=_some(related.watchers),
        timers=TimersInfo(count=count, next_due=due),
        called_by=_calls(((pid, one) for one in waiting.get(pid, {}).values()), now),
        calls=_calls(own, now),
        requests=len(process.pending),
        mailbox=MailboxInfo(
            waiting=process.pipe.backlog,
            mail=process.pipe.mailbox,
            visits=process.pipe.visits,
            limit=process.options.mailbox,
            messages=process.pipe.queued,
        ),
        options={
            **msgspec.to_builtins(process.options),
            "end_when_empty": process.end_when_empty,
            "trap_links": process.row.traps_links,
        },
        limits={
            name: value
            for name, value in msgspec.to_builtins(process.options.limits).items()
            if value is not None
        },
    )


def _some(texts: Iterable[str]) -> Excerpt:
    whole = [str(text) for text in texts]
    return Excerpt(count=len(whole), first=heapq.nsmallest(MOST_CLIENTS, whole))


def _calls(calls: Iterable[tuple[PID, WaitingCall]], now: float) -> list[CallInfo]:
    longest = heapq.nsmallest(_MOST_CALLS, calls, key=lambda call: call[1].since)
    return [
        CallInfo(
            caller=str(one.caller),
            callee=str(callee),
            topic=one.topic,
            waits=round(now - one.since, 3),
        )
        for callee, one in longest
    ]


def _code(node: Node, process: WorkerProcess) -> CodeInfo:
    """Return what it runs; an entry's id is shown as its target."""
    entry = node.entries.get(process.entry)
    text = process.target if entry is None else entry.target
    try:
        target = targets.parse(text)
    except InvalidTarget:  # a callable that has no name that could be written
        return CodeInfo(target=text)
    if target.script is not None:
        return _defined(text, target.script, target.function)
    module = sys.modules.get(target.module or "")
    if (file := getattr(module, "__file__", None)) is None:
        return CodeInfo(target=text)
    code = _defined(text, file, target.function)
    # The worker may have another module of that name.
    return CodeInfo(target=text) if code.line is None else code


def _defined(text: str, file: str, function: str) -> CodeInfo:
    """Return the line of a function or class in its file, as that is now."""
    if not Path(file).is_file():  # a FIFO would hold up the node
        return CodeInfo(target=text)
    try:
        with Path(file).open(encoding="utf-8", errors="replace") as script:
            source = script.read(_MOST_SOURCE)
    except OSError:
        return CodeInfo(target=text)
    definition = rf"^(?:async\s+def|def|class)\s+{re.escape(function)}\b"
    found = re.search(definition, source, re.MULTILINE)
    line = None if found is None else source.count("\n", 0, found.start()) + 1
    return CodeInfo(target=text, file=file, line=line)
