"""The frames between the node and its workers, and between the node and its templates.

A frame on a pipe is its length (4 bytes, big endian) followed by one MessagePack array whose first
item is the frame's tag. Payloads travel inside as bytes of MessagePack, which the node forwards
without looking at them; they, and the code of starts, may have a trace context in front
(`values/trace_context.py`). Everything else that a worker writes is bounded before it is decoded,
each field by its type and all of them together by `MAX_HEAD`.
"""

from __future__ import annotations

import signal
from typing import Annotated, Any, Final, Literal, cast

from msgspec import Meta, Raw, Struct

from wsrelay.errors import CallError, ProcessError
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import LONGEST
from wsrelay.values.presence import Kind
from wsrelay.values.rights import Rights

from . import payload
from .meta import MAX_META

__all__ = [
    "INTERRUPT",
    "LONGEST_TARGET",
    "MAX_FRAME",
    "MAX_HEAD",
    "MAX_RECEIVERS",
    "PIPE_CLOSED",
    "STACK",
    "STACK_AT_ONCE",
    "WINDOW",
    "AckFrame",
    "AnswerFrame",
    "AttachFrame",
    "BroadcastFrame",
    "CallFrame",
    "CalledFrame",
    "CancelFrame",
    "CancelTimerFrame",
    "CatalogFrame",
    "CloseInboxFrame",
    "DeliverFrame",
    "DetachFrame",
    "DoneFrame",
    "DrainFrame",
    "ExecFrame",
    "ExitedFrame",
    "FenceFrame",
    "FinishedFrame",
    "ForgetFrame",
    "ForkFailedFrame",
    "ForkFrame",
    "ForkedFrame",
    "Frame",
    "FromTemplate",
    "FromWorker",
    "GetOrSpawnFrame",
    "InterruptFrame",
    "JoinGroupFrame",
    "JoinReadFrame",
    "KillFrame",
    "LeaveGroupFrame",
    "LoadFailedFrame",
    "LoadedFrame",
    "LogFrame",
    "LookupFrame",
    "MembersFrame",
    "OptionsFrame",
    "PackedResult",
    "PresenceFrame",
    "ReadyFrame",
    "RegisterFrame",
    "RelateFrame",
    "RelayFrame",
    "ReplyFrame",
    "Request",
    "RosterFrame",
    "SendAfterFrame",
    "SendFrame",
    "SignalFrame",
    "SpawnFrame",
    "StartFrame",
    "TasksFrame",
    "TerminateFrame",
    "ToTemplate",
    "ToWorker",
    "UnregisterFrame",
    "UnwatchFrame",
    "WatchFrame",
    "WorkerError",
]

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes of the largest frame; a greater length is garbage, not a message."""

MAX_HEAD: Final = 1024 * 1024
"""Bytes of a worker's frame besides payloads and code: the part that the node decodes."""

MAX_RECEIVERS: Final = 10_000
"""Receivers of one frame; a message for more is written as several frames."""

WINDOW: Final = 128 * 1024
"""Bytes of data frames that the node sends ahead of what the worker has acknowledged."""

PIPE_CLOSED: Final = 237
"""The exit code of a worker that cannot say how it ended because its handler closed its pipe."""

INTERRUPT: Final[int] = getattr(signal, "SIGRTMAX", signal.SIGURG)
"""The signal that interrupts a handler; not a frame, since the handler may never read its pipe.

It is the last of the real-time signals, which programs and libraries hardly use; where there are
none (macOS), it is a signal that is ignored by default.
"""

STACK: Final[int] = INTERRUPT - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""The signal at which a worker writes its stacks to its host's `TallySheet`, if its line says so.

It does so between two steps of its main thread, while no other thread runs.
"""

STACK_AT_ONCE: Final[int] = STACK - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""The signal at which it does so wherever it is, for when its main thread never gets that far."""


Text = Annotated[str, Meta(max_length=LONGEST)]
"""A PID, a name, a group, a topic, a host, a reason."""

LONGEST_TARGET: Final = 8 * 1024
"""Characters of a target, which may be a path."""

TargetText = Annotated[str, Meta(max_length=LONGEST_TARGET)]

ErrorText = Annotated[str, Meta(max_length=128 * 1024)]
"""An error's line, a traceback."""

Record = Annotated[str, Meta(max_length=512 * 1024)]
"""A log record's text."""


class Frame(Struct, array_like=True, forbid_unknown_fields=True):
    """Base of all frames."""


class WorkerError(Struct):
    """An `ExitError` as a worker reports it, with bounds."""

    kind: ExitKind
    message: ErrorText
    traceback: ErrorText | None = None

    def told(self) -> ExitError:
        """Return it as an `ExitError`."""
        return ExitError(self.kind, self.message, self.traceback)


class PackedResult(Struct):
    """A `Result` as the node reports it: `value` is MessagePack, which the receiver decodes."""

    value: bytes
    error: ExitError | None = None

    @classmethod
    def of(cls, result: Result) -> PackedResult:
        """Make it from a result; that of a worker has a `Raw` value, as the worker wrote it."""
        value = result.value
        if type(value) is Raw:  # up to 64 MB, possibly for many watchers: encode without a copy
            return cls(cast("bytes", memoryview(value)), result.error)
        return cls(payload.pack(value), result.error)

    def opened(self) -> Result:
        """Return the result; a value that is not data, which no worker of ours writes, is None."""
        try:
            return Result(payload.decode(self.value), self.error)
        except (ValueError, RecursionError):
            return Result(None, self.error)


# Node to worker. Data frames (Deliver to Presence) keep their order and wait until the worker has
# room; the others go ahead of them.


class CatalogFrame(Frame, tag=9):
    """What can be spawned: the hosts, and the ids of entries, each with its host if it has one.

    `roomy` has for hosts of other nodes the node where such a host has most room, if that is not
    this node. `shared`: what is started under a name may be started by another node, so its
    arguments are sent as data if they are that.
    """

    hosts: list[str]
    entries: dict[str, str | None]
    roomy: dict[str, str] = {}
    shared: bool = False

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry whose id is `target`, or None if there is no such entry.

        An entry without a host belongs to the first host.
        """
        if target is None or target not in self.entries:
            return None
        return self.entries[target] or self.hosts[0]


class StartFrame(Frame, tag=0):
    """First frame to a fresh worker: its identity and what it runs.

    `target` is text (see `targets`) or None. With None, `code` is the cloudpickle of
    `(function, args, kwargs)`; with a target it is that of `(args, kwargs)` or empty, or, if
    `plain`, their MessagePack. `title` is what `ps` shows. `rights` are those of a walled-in host.
    """

    pid: str
    ids: str
    known: CatalogFrame
    target: str | None
    code: bytes
    log_level: int
    title: str
    plain: bool = False
    rights: Rights | None = None
    end_when_empty: float | None = None


class DeliverFrame(Frame, tag=1):
    """A message from another process."""

    topic: str
    sender: str
    payload: bytes


class AttachFrame(Frame, tag=2):
    """From here on, `metadata` belongs to each message relayed from this client.

    `receipt`: answer with `JoinReadFrame` as soon as the next message from it has been read.
    `trace` is the context of its upgrade (`values/trace_context.py`), the first time.
    """

    client: str
    metadata: Raw
    receipt: bool = False
    trace: str = ""


class RelayFrame(Frame, tag=3):
    """A message from the relay; the worker adds `client_pid` and the client's metadata to it."""

    topic: str
    client: str
    payload: dict[str, Any]


class DetachFrame(Frame, tag=4):
    """The client's last relayed message has been sent, so its metadata can be dropped."""

    client: str


class CloseInboxFrame(Frame, tag=5):
    """No message follows."""


class PresenceFrame(Frame, tag=11):
    """What a watch shows: PIDs with their metadata as bytes (`meta`), in their order.

    A data frame. `watch` is the number in the `WatchFrame`.
    """

    group: str
    watch: int
    kind: Kind
    members: list[tuple[str, bytes]]


class SignalFrame(Frame, tag=6):
    """An event; overtakes data. `drains`: it is a CANCEL because the node shuts down."""

    kind: str
    sender: str
    reason: str = ""
    result: PackedResult | None = None
    drains: bool = False


class FinishedFrame(Frame, tag=8):
    """What became of the `ExecFrame` or the `CallFrame` of the same `ref`.

    It is how the process has ended, or the answer; `refused` is the text of a refusal.
    """

    ref: int
    result: PackedResult
    refused: str | None = None

    def check(self) -> None:
        """Raise the error that it tells, `CallError` or `ProcessError`, if it is one."""
        if self.refused is not None:
            raise CallError(self.refused)
        if (problem := self.result.error) is not None:
            raise ProcessError(problem.kind, problem.message, problem.traceback)


class CalledFrame(Frame, tag=10):
    """A message from another process that wants an answer; `call` is the node's number for it."""

    topic: str
    sender: str
    payload: bytes
    call: int


class TasksFrame(Frame, tag=12):
    """Write the stacks of the event loop's tasks to the `TallySheet`; overtakes data.

    Written at once, as a zero byte, `ref`, a line feed, the text, and another zero byte.
    """

    ref: int


class ReplyFrame(Frame, tag=7):
    """The answer to the request with the same `ref`: a value, or the error's class and message."""

    ref: int
    value: Any = None
    error: str | None = None
    message: str = ""


# Worker to node.


class ReadyFrame(Frame, tag=0):
    """The handler is loaded and about to be called."""


class SendFrame(Frame, tag=1):
    """One message for one process or name, or for many."""

    to: Text | Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    topic: Text
    payload: bytes


class SpawnFrame(Frame, tag=2):
    """Start a process under the PID that the worker made; the target is as in `StartFrame`.

    If that is None, the label says to operators what the code is.
    """

    pid: Text
    host: Text
    target: TargetText | None
    code: bytes
    monitored: bool = False
    linked: bool = False
    plain: bool = False
    label: Text = ""


class GetOrSpawnFrame(Frame, tag=3):
    """Find the process of that name, or start this one; answered with `ReplyFrame`.

    If it `stays`, no other node than that of its PID may start it.
    """

    ref: int
    name: Text
    spawn: SpawnFrame
    stays: bool = False


class CancelFrame(Frame, tag=4):
    """Ask a process to end."""

    to: Text
    reason: Text


class TerminateFrame(Frame, tag=5):
    """End a process at once."""

    to: Text


class AckFrame(Frame, tag=6):
    """The total of bytes of data frames taken from the channels: there is room for more.

    It is a running total, so that a frame that comes twice, too late or never does no harm.
    """

    total: int


class LogFrame(Frame, tag=7):
    """A record of the worker's `logging`, or of the template's.

    `extra` is a map; `level_name` is empty for the standard levels of `logging`. `printed` is how
    many bytes of its output were waiting to be read when it logged this: they come first.
    """

    level: int
    logger: Text
    text: Record
    extra: Raw = Raw(b"\x80")
    level_name: Text = ""
    printed: int = 0


class DoneFrame(Frame, tag=8):
    """The worker's last frame: what the handler returned or raised.

    `received` counts the data frames that arrived; `unread` lists the clients whose `ws.join` was
    among them and was never read.
    """

    value: bytes
    error: WorkerError | None
    received: int
    unread: Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]


class ExecFrame(Frame, tag=9):
    """Start a process and answer with `FinishedFrame` when it has ended."""

    ref: int
    spawn: SpawnFrame


class RelateFrame(Frame, tag=10):
    """Begin or end a relation to another process."""

    kind: Literal["monitor", "unmonitor", "link", "unlink"]
    to: Text


class OptionsFrame(Frame, tag=11):
    """All options of the process: whether it gets LINK_DOWN, and when it ends without clients.

    `end_when_empty` is in seconds, None for never.
    """

    trap_links: bool
    end_when_empty: float | None


class RegisterFrame(Frame, tag=12):
    """Give a process a name; answered with `ReplyFrame`."""

    ref: int
    name: Text
    pid: Text


class LookupFrame(Frame, tag=13):
    """Ask for the process of a name; answered with `ReplyFrame`."""

    ref: int
    name: Text


class UnregisterFrame(Frame, tag=14):
    """Free a name; answered with `ReplyFrame`."""

    ref: int
    name: Text


class JoinGroupFrame(Frame, tag=15):
    """Let a process join a group; without metadata, that of a member stays as it is."""

    group: Text
    to: Text
    meta: Annotated[bytes, Meta(max_length=MAX_META)] = b""


class LeaveGroupFrame(Frame, tag=16):
    """Let a process leave a group."""

    group: Text
    to: Text


class MembersFrame(Frame, tag=17):
    """Ask for a group's members; answered with `ReplyFrame`."""

    ref: int
    group: Text


class BroadcastFrame(Frame, tag=18):
    """One message for all members of a group."""

    group: Text
    topic: Text
    payload: bytes


class DrainFrame(Frame, tag=19):
    """Ask for a `ReplyFrame` when most of what was sent to a connection is on its way."""

    ref: int
    to: Text


class CallFrame(Frame, tag=20):
    """One message that wants an answer, which is a `FinishedFrame`."""

    ref: int
    to: Text
    topic: Text
    payload: bytes


class AnswerFrame(Frame, tag=21):
    """The answer to the call with that number: a value, or the text of a refusal."""

    call: int
    value: bytes
    refused: Text | None = None


class ForgetFrame(Frame, tag=22):
    """Nothing waits for the answer to that request any more."""

    ref: int


class SendAfterFrame(Frame, tag=23):
    """A message that the node sends later, for the timer that the worker has made.

    `due` is in nanoseconds of the monotonic clock, which is one for all processes of a machine.
    """

    timer: Text
    due: int
    to: Text | Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    topic: Text
    payload: bytes


class CancelTimerFrame(Frame, tag=24):
    """Do not send the message of that timer, if it has not been sent."""

    timer: Text


class RosterFrame(Frame, tag=25):
    """Ask for a group's members and their metadata; answered with `ReplyFrame`."""

    ref: int
    group: Text


class WatchFrame(Frame, tag=26):
    """Ask for a `PresenceFrame` of the members that there are, and for one of each change.

    `number` is the worker's own; a second watch of the group takes the place of the first.
    """

    group: Text
    number: int


class UnwatchFrame(Frame, tag=27):
    """End that watch, unless another has taken its place."""

    group: Text
    number: int


class FenceFrame(Frame, tag=29):
    """Ask for the process's number as the owner of a name, None for that of its spawn.

    Answered with `ReplyFrame`.
    """

    ref: int
    name: Text | None


class JoinReadFrame(Frame, tag=28):
    """The client's `ws.join` has been read; if not that, a message that followed it."""

    client: Text


# Node to template. `ForkFrame` carries descriptors: the worker's ends of its pipes.


class ForkFrame(Frame, tag=0):
    """Fork a worker; `ref` is the node's number for it, `line` that on the `TallySheet` or None."""

    ref: int
    line: int | None = None


class KillFrame(Frame, tag=1):
    """SIGKILL the worker's process group."""

    ref: int


class InterruptFrame(Frame, tag=2):
    """Send the worker `INTERRUPT`, for a node that has no pidfd to do so itself."""

    ref: int


# Template to node.


class LoadedFrame(Frame, tag=0):
    """Preloading succeeded."""


class LoadFailedFrame(Frame, tag=1):
    """Preloading failed: one line, and the traceback of the user's code or an empty string."""

    message: str
    details: str


class ForkedFrame(Frame, tag=2):
    """The worker runs; `has_pidfd` says that the platform has pidfds."""

    ref: int
    os_pid: int
    has_pidfd: bool


class ForkFailedFrame(Frame, tag=3):
    """The operating system refused to fork."""

    ref: int
    message: str


class ExitedFrame(Frame, tag=4):
    """The worker was reaped; `code` as in `subprocess`: negative for a signal."""

    ref: int
    code: int


ToWorker = (
    StartFrame
    | DeliverFrame
    | AttachFrame
    | RelayFrame
    | DetachFrame
    | CloseInboxFrame
    | PresenceFrame
    | SignalFrame
    | ReplyFrame
    | FinishedFrame
    | CatalogFrame
    | CalledFrame
    | TasksFrame
)
Request = (
    GetOrSpawnFrame
    | RegisterFrame
    | LookupFrame
    | UnregisterFrame
    | MembersFrame
    | DrainFrame
    | RosterFrame
    | FenceFrame
    | CallFrame
)
FromWorker = (
    ReadyFrame
    | SendFrame
    | SpawnFrame
    | CancelFrame
    | TerminateFrame
    | AckFrame
    | LogFrame
    | DoneFrame
    | ExecFrame
    | RelateFrame
    | OptionsFrame
    | JoinReadFrame
    | JoinGroupFrame
    | LeaveGroupFrame
    | BroadcastFrame
    | WatchFrame
    | UnwatchFrame
    | AnswerFrame
    | ForgetFrame
    | SendAfterFrame
    | CancelTimerFrame
    | Request
)
ToTemplate = ForkFrame | KillFrame | InterruptFrame
FromTemplate = (
    LoadedFrame | LoadFailedFrame | ForkedFrame | ForkFailedFrame | ExitedFrame | LogFrame
)
