"""Commands that look at one process or connection: `show`, `ends`, `trace` and `close`."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from wsrelay.control import ControlClient
from wsrelay.control.records import LogRecord
from wsrelay.node import NodeInfo, ProcessInfo
from wsrelay.node.info import (
    CallInfo,
    ConnectionEndInfo,
    EndInfo,
    Excerpt,
    MailboxInfo,
    ProcessDetail,
    TraceRecord,
)
from wsrelay.values import durations
from wsrelay.values.pid import PID
from wsrelay.values.printable import escaped, escaped_in_json, indented, printable

from . import cells
from .nodes import anywhere_option, chosen, complete, node_option
from .options import json_option, parsed
from .running import say
from .usage import UsageSampler, duration, size

__all__ = ["close", "ends", "show", "trace"]

_PROCESSES: Final = ("ENDED", "PID", "OS PID", "LIVED", "CLIENTS", "NAMES", "TARGET", "HOW")
_CONNECTIONS: Final = ("ENDED", "PID", "CLIENT", "USER", "UPTIME", "MESSAGES", "TARGET", "HOW")

_POLL: Final = 0.5
"""Seconds between two looks for further ends."""

_MOST_SHOWN: Final = 10
"""Lines of each kind that `show` prints."""

_MOST_ENDS: Final = 1_000


# Those that have ended


@click.command()
@click.argument("of", required=False, metavar="[PID|NAME]", shell_complete=complete)
@click.option("--connections", is_flag=True, help="Those of connections; for a PID, its clients.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
@node_option
@json_option
def ends(
    *, of: str | None, connections: bool, follow: bool, node: str | None, as_json: bool
) -> None:
    """Print how the last processes of a running node ended, the latest last.

    For one process or name, the tracebacks follow. A node keeps the last 1,000 ends of processes,
    and of connections.
    """
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):
        after = -1
        while True:
            found: Sequence[EndInfo] | Sequence[ConnectionEndInfo]
            look = client.connection_ends if connections else client.ends
            found = look(of, after=max(after, 0), limit=_MOST_ENDS)
            if found or after < 0:
                _print_ends(found, heads=after < 0, of=of, as_json=as_json)
            after = found[-1].number if found else max(after, 0)
            if not follow:
                break
            time.sleep(_POLL)
        if not after and (of is not None or not as_json):
            say(f"wsrelay: {_no_ends(client, of, connections=connections)}")
            if of is not None:
                raise SystemExit(1)


def _no_ends(client: ControlClient, of: str | None, *, connections: bool) -> str:
    what = "connection" if connections else "process"
    whose = "" if of is None else f" {of!r:.200}"
    return f"node {client.node().name} remembers no {what}{whose} that has ended"


def _print_ends(
    found: Sequence[EndInfo] | Sequence[ConnectionEndInfo],
    *,
    heads: bool,
    of: str | None,
    as_json: bool,
) -> None:
    if as_json:
        for one in found:
            click.echo(escaped_in_json(msgspec.json.encode(one).decode()))
        sys.stdout.flush()
        return
    rows = [
        _end_cells(one) if isinstance(one, EndInfo) else _connection_end_cells(one) for one in found
    ]
    if not rows:
        return
    if heads:
        is_process = isinstance(found[0], EndInfo)
        click.echo(cells.plain(_PROCESSES if is_process else _CONNECTIONS, rows))
    else:
        for row in rows:
            click.echo("  ".join(row))
    if of is not None:
        for one in found:
            if isinstance(one, EndInfo) and one.traceback:
                click.echo(indented(f"{one.pid}: {one.message}\n{one.traceback.rstrip()}"))
    sys.stdout.flush()


def _end_cells(end: EndInfo) -> tuple[str, ...]:
    return (
        _moment(end.ended),
        _id(end.pid),
        str(end.os_pid or "-"),
        duration(end.ended - end.started),
        str(end.clients),
        ", ".join(map(printable, end.names)) or "-",
        printable(end.target),
        _how(end),
    )


def _connection_end_cells(end: ConnectionEndInfo) -> tuple[str, ...]:
    one = end.connection
    return (
        _moment(end.ended),
        _id(one.pid),
        cells.address(one),
        printable(one.user or "-"),
        duration(one.uptime),
        str(one.messages),
        ", ".join(map(printable, end.names)) or one.target,
        _closed(end),
    )


_HOW: Final = {
    "exited": "ended itself",
    "empty": "had no client any more",
    "parent": "its caller has ended",
    "shutdown": "the node shuts down",
    "signal": "killed from outside",
    "limit": "at a limit",
    "link": "by a link",
    "node": "by the node",
}


def _how(end: EndInfo) -> str:
    """Say in one line how a process has ended."""
    text = _HOW.get(end.how, end.how.replace("_", " "))
    if end.how in {"cancelled", "terminated"}:
        text = f"{text} by {end.by}"
    if end.reason and end.how not in {"parent", "empty", "shutdown"}:
        text = f"{text} ({printable(end.reason)})"
    if end.message and end.kind != "terminated":
        text = f"{text}: {printable(end.message)}"
    return text


def _closed(end: ConnectionEndInfo) -> str:
    """Say in one line how a connection has ended."""
    who = f"{end.how} by {end.by}" if end.by else _CLOSED.get(end.how, end.how)
    return f"{who}: {printable(f'{end.code} {end.reason}'.rstrip())}"


_CLOSED: Final = {"link": "by a link", "shutdown": "the node"}


# One process


@click.command()
@click.argument("of", metavar="PID|NAME", shell_complete=complete)
@anywhere_option
@node_option
@json_option
def show(*, of: str, node: str | None, anywhere: bool, as_json: bool) -> None:
    """Print everything that its node knows about one process."""
    with chosen(node) as client:
        told = client.process(of, anywhere=anywhere)
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
            return
        usage, pid = UsageSampler(), told.process.pid
        if client.has(pid):  # else its OS PID may be that of another machine
            usage.sample(_only(told.process))
        log = client.on(str(PID(pid).node)).logs(pid, follow=False)
        for line in _lines(told, usage, [*log]):
            click.echo(line)


def _only(process: ProcessInfo) -> NodeInfo:
    """Return a node that has this one process."""
    return NodeInfo(
        name="",
        os_pid=0,
        version="",
        draining=False,
        dead_letters=0,
        hosts=[],
        processes=[process],
        connections=[],
    )


def _lines(told: ProcessDetail, usage: UsageSampler, log: Sequence[LogRecord]) -> Iterator[str]:
    process = told.process
    os_pid, uptime, cpu, memory, _, took, clients = cells.figures(process, usage)
    rows: list[tuple[str, Iterable[str]]] = [
        ("pid", [f"{process.pid}, {process.state}, OS pid {os_pid}"]),
        ("names", _some(told.names)),
        ("runs", [printable(told.code.target) + _where(told)]),
        ("host", [f"{told.host.name}, {told.host.processes} of {told.host.max_processes}"]),
        ("started", [f"{_moment(told.started)}, {uptime} ago"]),
        ("uses", [f"CPU {cpu}, memory {memory}"]),
        ("mailbox", [_mailbox(told.mailbox)]),
        (
            "took",
            [f"a message {took} ago, {process.waiting} wait" if took != "-" else "no message yet"],
        ),
        ("parent", [process.parent or "-"]),
        ("children", _some(told.children)),
        ("linked to", _some(told.links)),
        ("monitors", _some(told.monitors)),
        ("monitored by", _some(told.monitored_by)),
        ("groups", _some(told.groups)),
        ("timers", [_timers(told)] if told.timers.count else []),
        ("calls", [_call(one, one.callee) for one in told.calls]),
        ("called by", [_call(one, one.caller) for one in told.called_by]),
        ("requests", [f"{told.requests} not answered yet"] if told.requests else []),
        ("limits", [f"{name}: {_plain(value)}" for name, value in told.limits.items()]),
        ("options", [_options(told)]),
        (f"clients ({clients})", [f"{_id(one.pid)} {cells.who(one)}" for one in told.clients]),
        ("log", [f"{_moment(one.time)} {one.level.upper():7} {one.text}" for one in log]),
    ]
    for what, given in rows:
        found = list(given)
        if what == "log":
            found = found[-_MOST_SHOWN:]
        elif len(found) > _MOST_SHOWN:
            found[_MOST_SHOWN:] = [f"and {len(found) - _MOST_SHOWN} more: see --json"]
        for number, text in enumerate(found):
            yield f"{'' if number else what:14}{indented(text)}".rstrip()


def _mailbox(mailbox: MailboxInfo) -> str:
    mail = f"{size(mailbox.mail)} of at most {size(mailbox.limit)} from processes"
    rest = f"{size(mailbox.visits)} joins and leaves; {mailbox.messages} sent since its start"
    return f"{size(mailbox.waiting)} wait; {mail}, {rest}"


def _where(told: ProcessDetail) -> str:
    code = told.code
    if code.file is None:
        return ""
    return f" ({printable(code.file)}" + (f", line {code.line})" if code.line else ")")


def _some(some: Excerpt) -> list[str]:
    return [printable(one) for one in some.first]


def _timers(told: ProcessDetail) -> str:
    due = told.timers.next_due or 0.0
    return f"{told.timers.count}, the next one in {duration(due)}"


def _call(call: CallInfo, peer: str) -> str:
    return f"{peer} {printable(call.topic)}, for {duration(call.waits)}"


_OPTIONS: Final = ("end_when_empty", "trap_links", "stop_timeout", "start_timeout", "log_rate")


def _options(told: ProcessDetail) -> str:
    return ", ".join(f"{name} {_plain(told.options.get(name))}" for name in _OPTIONS)


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# Messages as they pass


@click.command()
@click.argument("of", metavar="PID|NAME", shell_complete=complete)
@click.option("--payload", "contents", is_flag=True, help="Show contents, up to 1 KB of each.")
@click.option(
    "--count", default=1_000, show_default=True, type=click.IntRange(1, 1_000_000), metavar="N"
)
@click.option(
    "--for",
    "seconds",
    default="60s",
    show_default=True,
    callback=parsed(durations.parse),
    help="When to end.",
)
@anywhere_option
@node_option
@json_option
def trace(
    *,
    of: str,
    contents: bool,
    count: int,
    seconds: float,
    node: str | None,
    anywhere: bool,
    as_json: bool,
) -> None:
    """Print the messages to and from a process, or a client's connection, as they pass.

    It ends after N messages, after some time, with Ctrl-C, or with that process. If more pass than
    can be shown, it says how many were not.
    """
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):
        records = client.trace(
            of, contents=contents, count=count, seconds=seconds, anywhere=anywhere
        )
        for record in records:
            if as_json:
                click.echo(escaped_in_json(msgspec.json.encode(record).decode()))
            elif record.note:
                say(f"wsrelay: {record.note}")
            else:
                click.echo(_passing(record))
            sys.stdout.flush()


def _passing(record: TraceRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.time).astimezone()
    arrow = "<-" if record.direction == "in" else "->"
    peer = " ".join(map(printable, filter(None, [record.peer or "-", *record.names])))
    if record.others:
        peer += f" and {record.others} more"
    line = f"{moment:%H:%M:%S.%f}"[:-3]
    line += f" {arrow} {peer}  {printable(record.topic)}  {size(record.size)}"
    return line if record.payload is None else f"{line}  {escaped(record.payload)}"


# Closing a client


@click.command()
@click.argument("to", metavar="PID")
@click.option("--code", default=1000, show_default=True, type=int, help="The close frame's code.")
@click.option("--reason", default="", help="Its reason, up to 123 bytes.")
@anywhere_option
@node_option
def close(*, to: str, code: int, reason: str, node: str | None, anywhere: bool) -> None:
    """Close a client's connection."""
    with chosen(node) as client:
        client.close(to, code, reason, anywhere=anywhere)


def _moment(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _id(pid: str) -> str:
    return pid.rpartition("|")[2].removesuffix("}")
