"""What a node knows about itself, for monitoring."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

__all__ = [
    "CallInfo",
    "CodeInfo",
    "ConnectionEndInfo",
    "ConnectionInfo",
    "EndInfo",
    "Excerpt",
    "HostInfo",
    "LinkInfo",
    "LinkTraffic",
    "MailboxInfo",
    "MemberInfo",
    "NodeInfo",
    "ProcessDetail",
    "ProcessInfo",
    "TimersInfo",
    "TraceRecord",
]


class ConnectionInfo(Struct, frozen=True, kw_only=True):
    """One connection, or a client of another node whose target is here, as far as is known here.

    `uptime` is in seconds since the upgrade. `client` is the client's address and port (None over a
    Unix socket; the port is 0 behind a proxy that does not report it). `user` comes from the
    relay's metadata: its `user` (the `name` or `id` of that if it is an object), else its `name`.
    `messages` counts what the client has sent, `sent` what has been written for it, which only its
    own node knows. `outbox` is the bytes that wait for the client,
    `dropped` counts the messages that it never got (outbox policy `drop`), and `unfinished` is the
    bytes that it has sent of messages that are not complete yet.
    """

    pid: str
    target: str
    client: tuple[str, int] | None = None
    path: str = ""
    subprotocol: str | None = None
    user: str | None = None
    uptime: float
    messages: int
    sent: int = 0
    outbox: int
    dropped: int
    unfinished: int = 0


class ProcessInfo(Struct, frozen=True, kw_only=True):
    """One worker; `parent` is the process that spawned it, `uptime` in seconds.

    `mailbox` is the bytes that wait for it at the node: messages from processes and clients, joins
    and leaves, each with its overhead. `received` counts the messages that were handed to it, those
    of the mailbox included, and `sent` those that it has sent: one to many receivers is one.
    `waiting` is how many messages it has not taken, wherever they wait: at the node, in its pipe or
    in its channels. `idle` is the seconds since it took the last, None if it has taken none.
    `stalled`: it has had messages waiting and has taken none for as long as the `stall` of its
    host. `names` has at most the first hundred names.
    """

    pid: str
    os_pid: int | None
    host: str
    target: str
    state: str
    names: list[str]
    parent: str | None
    uptime: float
    mailbox: int
    received: int = 0
    sent: int = 0
    connections: int
    waiting: int = 0
    idle: float | None = None
    stalled: bool = False


class EndInfo(Struct, frozen=True, kw_only=True):
    """A process that has ended; `number` counts the ends of a node's processes, from 1.

    `started` and `ended` are in seconds since 1970. `kind` is `returned`, or the kind of the error
    that it ended with, whose text is `message`, with its `traceback` (of a long one without its
    middle). `names` has at most ten, `clients` is how many clients it still had.

    `how` says what ended it:

    - `returned`, `raised`, `exited` (by an exit code): itself
    - `cancelled`, `terminated`: it was asked to end, or killed, for `reason`, by whom `by` says
    - `empty`: it had no client for as long as `end_when_empty` says
    - `parent`: `by`, which waited for its end in an `exec`, has ended
    - `shutdown`: the node shuts down
    - `signal`: it was killed from outside; `message` is the signal
    - `link`: a process that it is linked to has ended with an error
    - `limit`: a limit of its host, or one that every process has
    - `node`: the node has ended it for what it did
    - otherwise the same as `kind`

    `by` is a PID, `shell` or `console`. It is that of who asked it to end first, however it then
    ended: a process may raise on its way. None: nobody did.
    """

    number: int
    pid: str
    names: list[str]
    target: str
    host: str
    os_pid: int | None
    parent: str | None
    started: float
    ended: float
    kind: str
    how: str
    by: str | None = None
    reason: str = ""
    message: str = ""
    traceback: str | None = None
    clients: int = 0


class ConnectionEndInfo(Struct, frozen=True, kw_only=True):
    """A connection that has ended; `number` counts the ends of a node's connections, from 1.

    `connection` is what was known of it last, `names` are those of its target, at most ten. `ended`
    is in seconds since 1970. `code` and `reason` are those of the close frame that was first (1006
    without one: the client has vanished).

    `how` says who ended it:

    - `client`
    - `target`: its process has ended, or could not be started
    - `closed`, `killed`: a process or an operator, see `by`, which is as in `EndInfo`
    - `relay`: the client is too slow, or breaks a rule or a limit, as `reason` says. A server that
      is not ours may do this by itself, which looks as if the client had
    - `link`: a process that it is linked to has ended with an error
    - `shutdown`: the node shuts down
    - `refused`: the upgrade did not come about
    """

    number: int
    ended: float
    code: int
    reason: str
    how: str
    by: str | None
    names: list[str]
    connection: ConnectionInfo


class HostInfo(Struct, frozen=True, kw_only=True):
    """One process host; `os_pid` is its template's."""

    name: str
    os_pid: int | None
    processes: int
    max_processes: int


class NodeInfo(Struct, frozen=True, kw_only=True):
    """A node and everything in it.

    `application` is what it serves, `addresses` are the URLs that it serves at, `uptime` is in
    seconds; the control socket fills these in. `buffered` is the bytes of messages that clients
    have begun and not finished.
    """

    name: str
    os_pid: int
    version: str
    draining: bool
    dead_letters: int
    hosts: list[HostInfo]
    processes: list[ProcessInfo]
    connections: list[ConnectionInfo]
    buffered: int = 0
    max_buffered: int = 0
    application: str = ""
    addresses: list[str] = []
    uptime: float = 0.0


class CallInfo(Struct, frozen=True, kw_only=True):
    """A `call` that waits for its answer, for so many seconds."""

    caller: str
    callee: str
    topic: str
    waits: float


class CodeInfo(Struct, frozen=True, kw_only=True):
    """What a process runs: its target in full, and where that is, as far as the node knows."""

    target: str
    file: str | None = None
    line: int | None = None


class MailboxInfo(Struct, frozen=True, kw_only=True):
    """What waits for a process at the node, in bytes, each message with its overhead.

    `mail` is the part that processes have sent, of which there may be `limit`, and `visits` the
    part that tells of clients joining and leaving. The rest is what clients have sent. `messages`
    is how many were sent to it since its start, joins and leaves included.
    """

    waiting: int
    mail: int
    visits: int
    limit: int
    messages: int


class TimersInfo(Struct, frozen=True, kw_only=True):
    """The messages of `send_after` of a process that are not due yet.

    `next_due` is in how many seconds the first one is, None without any.
    """

    count: int
    next_due: float | None = None


class Excerpt(Struct, frozen=True, kw_only=True):
    """Texts, the first thousand in their order, and how many there are."""

    count: int
    first: list[str]


class ProcessDetail(Struct, frozen=True, kw_only=True):
    """Everything that a node knows about one process.

    `started` is in seconds since 1970. `clients` has the first thousand of `process.connections`.
    `monitors` are those that it monitors, `monitored_by` the others that monitor it. `called_by`
    are the calls that wait for its answers, `calls` those of its own to processes of this node, a
    hundred of each at most, the longest first; `requests` counts everything that it waits for from
    its node, calls included. `options` are those of its host at its start, by their names in
    Python, and its own (`end_when_empty`, `trap_links`); `limits` has those that are set.
    """

    process: ProcessInfo
    started: float
    host: HostInfo
    code: CodeInfo
    names: Excerpt
    groups: Excerpt
    clients: list[ConnectionInfo]
    children: Excerpt
    links: Excerpt
    monitors: Excerpt
    monitored_by: Excerpt
    timers: TimersInfo
    called_by: list[CallInfo]
    calls: list[CallInfo]
    requests: int
    mailbox: MailboxInfo
    options: dict[str, Any]
    limits: dict[str, float]


class TraceRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message to or from one process as it passes, or a `note` about the trace itself.

    `time` is in seconds since 1970. `direction` is `in` for what the process is sent and `out` for
    what it sends; a connection is sent what its client gets, and sends what the client does. `peer`
    is who sends or gets it, a PID, a name, or `group` and its name; `others` counts further
    receivers. `names` has the first three names of the peer. `size` is the bytes of the payload,
    `payload` its first thousand characters as JSON, if it was asked for; bytes are in base64.
    `topic` is that of the message, the kind of an event (`CANCEL`, `EXIT`, `LINK_DOWN`), `answer`
    to a call, or `presence` of a group. The `last` record is a note that says why nothing follows.
    """

    time: float
    direction: str = ""
    topic: str = ""
    peer: str = ""
    others: int = 0
    names: list[str] = []
    size: int = 0
    payload: str | None = None
    note: str = ""
    last: bool = False


class LinkInfo(Struct, frozen=True, kw_only=True):
    """The link to another node: what has not arrived there, in bytes, and for how long.

    `backlog` waits here for room, `unacknowledged` is under way. `delay` is the seconds for which
    nothing of that has been acknowledged.
    """

    connected: bool
    backlog: int
    unacknowledged: int
    delay: float
    sent: int
    resent: int
    received: int


class LinkTraffic(Struct, frozen=True):
    """Bytes of all links to other nodes since the node started, links that have ended included.

    `sent` counts each publish once, and `resent` what was published again.
    """

    sent: int = 0
    resent: int = 0
    received: int = 0


class MemberInfo(Struct, frozen=True, kw_only=True):
    """A node of the cluster, as the node that was asked knows it.

    `state` is `up`, `joining`, `frozen` (its lease was not renewed in time), `draining`, `silent`
    (waited for: its lease is not renewed, and when that has run out it is declared dead),
    `unknown` (noticed, and its lease not read yet), `misfit` (with another lease or protocol: no
    member), `dead` or `gone` (it has left). `incarnation` is empty for one that is not alive.
    `unrenewed` is the seconds for which its lease was not renewed, as far as was seen; None while
    the node that was asked sees nothing of it, as without NATS.

    `hosts` has how many processes each host runs and may run; `clients` is the connections. They,
    `version` and `protocol` are what the node says of itself: None if it has not said so lately.
    `link` is that to the node; None for the one that was asked, and without one.
    """

    name: str
    incarnation: str
    state: str
    asked: bool = False
    version: str | None = None
    protocol: int | None = None
    hosts: dict[str, tuple[int, int]] | None = None
    clients: int | None = None
    unrenewed: float | None = None
    link: LinkInfo | None = None
