"""The frames between nodes.

A frame is one MessagePack array whose first item is its tag, as those on pipes (`wire/frames.py`).
They travel in the publishes of a `link`, in order; each kind says who writes it. Tags: 0-9 the link
itself, 10-29 processes, 30-39 names, 40-49 groups, 50-69 clients of other nodes, 70-79 operators.

A class with a tag is a kind of frame as soon as it is defined here. Every field is bounded by its
type, so that what a frame becomes when decoded is bounded by its size (`framing`).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from wsrelay.values.durations import LONGEST as LONGEST_DURATION
from wsrelay.values.pid import LONGEST
from wsrelay.wire import LONGEST_TARGET, MAX_RECEIVERS, WorkerError
from wsrelay.wire.meta import MAX_META

__all__ = [
    "MAX_MEMBERSHIPS",
    "MAX_NAMES",
    "PROTOCOL",
    "TOKEN",
    "AddMemberFrame",
    "AskNameFrame",
    "Content",
    "CreditFrame",
    "GroupMessageFrame",
    "GuestAttachFrame",
    "GuestBeatFrame",
    "GuestCloseFrame",
    "GuestJoinFrame",
    "GuestLeaveFrame",
    "GuestMessageFrame",
    "GuestReadFrame",
    "HelloFrame",
    "HoldFrame",
    "HostLoad",
    "HostsFrame",
    "LinkFrame",
    "Membership",
    "MembershipsFrame",
    "Named",
    "NamesFrame",
    "PeerCallFrame",
    "PeerControlFrame",
    "PeerDrainFrame",
    "PeerExitedFrame",
    "PeerFindFrame",
    "PeerFinishedFrame",
    "PeerForgetFrame",
    "PeerFrame",
    "PeerReplyFrame",
    "PeerSendFrame",
    "PeerSignalFrame",
    "PeerSpawnFrame",
    "PeerWatchFrame",
    "RegisterNameFrame",
    "ReleaseFrame",
    "RemoveMemberFrame",
    "StartedFrame",
    "TargetExitedFrame",
    "Text",
    "Token",
    "UnlinkedFrame",
    "UnregisterNameFrame",
    "VisitFrame",
    "VisitedFrame",
]

PROTOCOL: Final = 1
"""The version of all that nodes tell each other; nodes of one cluster have the same."""

Count = Annotated[int, Meta(ge=0)]

MAX_NAMES: Final = 1_000
"""The most names in one frame."""

MAX_MEMBERSHIPS: Final = 1_000
"""The most memberships in one frame."""

Text = Annotated[str, Meta(max_length=LONGEST)]
"""A PID, a name, a group, a topic, a host, a reason."""

MetaBytes = Annotated[bytes, Meta(max_length=MAX_META)]
"""A member's metadata, empty for none."""

Content = Annotated[bytes, Meta(description="MessagePack that is passed on unread")]
"""A payload. In a large frame of which it is most, it is a view of the frame and no copy."""

TargetText = Annotated[str, Meta(max_length=LONGEST_TARGET)]


TOKEN: Final = "[A-Za-z0-9_-]{1,63}"  # noqa: S105 - no secret
"""What can be a part of a key or a subject."""

Token = Annotated[str, Meta(pattern=rf"^{TOKEN}\Z")]
"""The name of a node, or one of its incarnations: it can be a part of a key or a subject."""

ErrorText = Annotated[str, Meta(max_length=128 * 1024)]
"""An error's line."""


class PeerFrame(Struct, array_like=True, forbid_unknown_fields=True):
    """Base of all frames between nodes."""


# 0-9: the link itself, and what nodes say of themselves


class HostLoad(Struct, array_like=True, frozen=True):
    """How full a process host is."""

    running: Annotated[int, Meta(ge=0)]
    most: Annotated[int, Meta(ge=0)]
    """How many processes it may run."""


class HelloFrame(PeerFrame):
    """What each node tells all others each second: on a subject of its own, not over links."""

    node: Token
    incarnation: Token
    protocol: int = PROTOCOL
    hosts: Annotated[dict[Text, HostLoad], Meta(max_length=1_000)] = {}
    entries: Annotated[list[Text], Meta(max_length=10_000)] = []
    """The ids of its configured entries."""
    draining: bool = False
    frozen: bool = False
    """Whether its lease has run so far out that its processes with names are stopped."""
    clients: Count = 0
    """Its connections."""
    version: Text = ""
    """That of the package."""
    ask: bool = False
    """Whether all others are to say hello at once."""
    leaving: bool = False
    """Whether this is its last one."""


# 10-29: processes. `pid` and `to` are of the node that reads, `sender`, `parent` and `other` of
# the node that writes, except in `PeerExitedFrame`. A frame with a `number` is a request, which the
# node that reads answers once, with `PeerReplyFrame` or `PeerFinishedFrame`.


class PeerSendFrame(PeerFrame, tag=10):
    """A message to processes of the node that reads it."""

    to: Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    sender: Text
    topic: Text
    payload: Content


class PeerSignalFrame(PeerFrame, tag=11):
    """Cancel or terminate a process; `restarts` as in `Node.cancel`."""

    to: Text
    sender: Text
    kind: Literal["cancel", "terminate"]
    reason: Text = ""
    restarts: bool = False


class PeerWatchFrame(PeerFrame, tag=12):
    """Begin or cease to tell the writer's node of a process's end, with `PeerExitedFrame`.

    If it is not alive, that is told at once.
    """

    pid: Text
    watched: bool


class LinkFrame(PeerFrame, tag=13):
    """A process of the writer is linked to one of the reader, or not any more."""

    pid: Text
    other: Text
    linked: bool


class UnlinkedFrame(PeerFrame, tag=14):
    """A `LinkFrame` that ended a link has been read; links that were begun before have ended."""

    pid: Text
    other: Text


class PeerExitedFrame(PeerFrame, tag=15):
    """A process of the writer has ended, or never lived."""

    pid: Text
    value: Content
    error: WorkerError | None = None


class PeerSpawnFrame(PeerFrame, tag=16):
    """Start a process under the PID that the writer made.

    `target` is the id of an entry of the reader, `code` its arguments as `wire.code.pack_plain`
    returns them. With `watched` or `linked`, its end is told with `PeerExitedFrame`.
    """

    pid: Text
    parent: Text
    target: TargetText
    code: Content
    watched: bool
    linked: bool


class PeerCallFrame(PeerFrame, tag=17):
    """A message that wants an answer, which is a `PeerFinishedFrame`."""

    number: int
    to: Text
    sender: Text
    topic: Text
    payload: Content


class StartedFrame(PeerFrame, tag=18):
    """Ask for a reply when a process runs its handler: None, or why it cannot be a target."""

    number: int
    pid: Text


class PeerDrainFrame(PeerFrame, tag=19):
    """Ask for a reply when most of what a connection was sent is on its way."""

    number: int
    pid: Text


class PeerReplyFrame(PeerFrame, tag=20):
    """The answer to a request: a value as MessagePack, or the error's class and message."""

    number: int
    value: Content
    error: Text | None = None
    message: ErrorText = ""


class PeerFinishedFrame(PeerFrame, tag=21):
    """The answer to a call; the fields are those of `wire.FinishedFrame`."""

    number: int
    value: Content
    error: WorkerError | None = None
    refused: Text | None = None


class PeerForgetFrame(PeerFrame, tag=22):
    """Nobody waits for the answer to that request any more; it is not answered, if it is not yet.

    The number may be used again by nobody.
    """

    number: int


class HoldFrame(PeerFrame, tag=23):
    """A process of the reader must not write while a client of the writer has no room, or may."""

    pid: Text
    client: Text
    held: bool


class HostsFrame(PeerFrame, tag=24):
    """The hosts of the writer, each with the bytes of its processes' mailboxes; at the beginning.

    A later one takes the place of the former.
    """

    mailboxes: Annotated[list[tuple[Text, int]], Meta(max_length=MAX_RECEIVERS)]


# 30-39: names


class Named(Struct, array_like=True, forbid_unknown_fields=True):
    """A name, its process, and the fence of that as the name's owner.

    The PID is empty if the name is not given any more.
    """

    name: Text
    pid: Text
    fence: Count = 0


class NamesFrame(PeerFrame, tag=30):
    """Names that the writer has given or freed since what it wrote before.

    `floor` is the writer's, as in `claims`: the reader's must not be below it.
    """

    names: Annotated[list[Named], Meta(max_length=MAX_NAMES)]
    floor: Count = 0


class AskNameFrame(PeerFrame, tag=31):
    """Ask for the process of a name, which the reader probably has.

    `find`: its PID, also of a successor that the reader starts if it has the name and its process
    has been cancelled. `place`: a process may be started, too, if nobody has the name. `who`: only
    the PID; `NameTaken` if a process that has been cancelled holds the name. `free`: None as soon
    as the reader does not decide who has the name.

    What is started is the entry `target` of the reader, None if it may start nothing, with
    arguments as `wire.code.pack_plain` returns them. The reply is the PID, the node and incarnation
    that have the name, or None if the reader does not have it.
    """

    number: int
    name: Text
    kind: Literal["find", "place", "who", "free"]
    sender: Text = ""
    host: Text = ""
    target: TargetText | None = None
    code: Content = b""
    end_when_empty: Annotated[float, Meta(ge=0, le=LONGEST_DURATION)] | None = None


class RegisterNameFrame(PeerFrame, tag=32):
    """Give a process of the reader a name; the reply is None."""

    number: int
    name: Text
    pid: Text


class UnregisterNameFrame(PeerFrame, tag=33):
    """Free a name if that process of the reader has it; the reply is None."""

    number: int
    name: Text
    pid: Text


# 40-49: groups


class Membership(Struct, array_like=True, forbid_unknown_fields=True):
    """A process of the writer as a member of a group; without metadata it is not one any more."""

    group: Text
    pid: Text
    meta: MetaBytes | None


class MembershipsFrame(PeerFrame, tag=40):
    """Memberships that have changed since what the writer told before: all, at the beginning."""

    members: Annotated[list[Membership], Meta(max_length=MAX_MEMBERSHIPS)]


class GroupMessageFrame(PeerFrame, tag=41):
    """A message for all processes of the reader that are members of a group."""

    group: Text
    sender: Text
    topic: Text
    payload: Content


class AddMemberFrame(PeerFrame, tag=42):
    """Let a process of the reader join a group; the reply follows what that has changed."""

    number: int
    group: Text
    pid: Text
    meta: MetaBytes


class RemoveMemberFrame(PeerFrame, tag=43):
    """Let a process of the reader leave a group."""

    group: Text
    pid: Text


# 50-69: clients of other nodes. A client's node writes 50-59, the node of the process that it is
# bound to writes 60-69. `ref` is the former's number for that process: from the first `VisitFrame`
# with it to the `ReleaseFrame`.


class VisitFrame(PeerFrame, tag=50):
    """A client is on its way to a process, which is kept for it; answered with `VisitedFrame`.

    `waits`: the answer waits until the process runs. With `target`, the id of an entry of the
    reader, the process is started first, for that client alone; `code` as in `PeerSpawnFrame`.
    What refuses that is the error of a `PeerReplyFrame`, unless its host is full.
    """

    ref: int
    number: int
    pid: Text
    waits: bool
    target: TargetText | None = None
    code: Content = b""


class GuestJoinFrame(PeerFrame, tag=51):
    """Bind a client to the process, with its metadata and what an operator wants to know of it.

    `receipt`: answer with `GuestReadFrame` when the process has read the join.
    """

    ref: int
    client: Text
    metadata: Content
    receipt: bool
    address: tuple[Text, int] | None
    path: Text
    subprotocol: Text | None
    user: Text | None


class GuestMessageFrame(PeerFrame, tag=52):
    """A message of a client: the `wire.RelayFrame` that the process reads, as on its pipe."""

    ref: int
    frame: Content


class GuestAttachFrame(PeerFrame, tag=53):
    """From here on, other metadata belongs to the client's messages."""

    ref: int
    client: Text
    metadata: Content


class GuestLeaveFrame(PeerFrame, tag=54):
    """The client has left the process."""

    ref: int
    client: Text
    code: int
    reason: Text


class GuestBeatFrame(PeerFrame, tag=56):
    """A client's heartbeat, with its payload."""

    ref: int
    client: Text
    uptime: float
    message_count: int


class ReleaseFrame(PeerFrame, tag=55):
    """No client is bound to the process any more, or on its way; the number is not used again."""

    ref: int


class VisitedFrame(PeerFrame, tag=60):
    """The answer to `VisitFrame`: the client is expected, or `problem` says why it cannot come.

    Then, `ended`: the process has ended, with that error if there is one. `full`: so many processes
    run in its host already. The others are those of `NoTarget`.
    """

    number: int
    problem: ErrorText | None = None
    ended: bool = False
    error: WorkerError | None = None
    full: int | None = None
    is_missing: bool = False
    is_over: bool = False
    is_crowded: bool = False


class GuestReadFrame(PeerFrame, tag=61):
    """The process has read the client's `ws.join`."""

    ref: int
    client: Text


class TargetExitedFrame(PeerFrame, tag=62):
    """The process has ended: `joins` had come by then, and it never read those of `unread`.

    `instead` is the close frame's code and reason where the error does not decide them.
    """

    ref: int
    error: WorkerError | None
    joins: int
    unread: Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    instead: tuple[int, Text] | None


class GuestCloseFrame(PeerFrame, tag=63):
    """Close the client, because the node of its process shuts down; it leaves as ever."""

    ref: int
    client: Text


class CreditFrame(PeerFrame, tag=64):
    """So many bytes of the clients' messages have been passed on, so there is room for more.

    It is a running total.
    """

    ref: int
    total: int


# 70-79: operators


class PeerFindFrame(PeerFrame, tag=70):
    """Ask for the PID of a living process or connection of the reader; the reply is it, or None.

    `to` is that PID, the part of it after the `|`, or a name that the reader knows of its own.
    """

    number: int
    to: Text


class PeerControlFrame(PeerFrame, tag=71):
    """Ask the reader's control socket; the reply is the status and the body of its answer.

    `path` is that of the request, with its query.
    """

    number: int
    method: Text
    path: Text
    body: bytes
