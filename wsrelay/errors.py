"""Everything that wsrelay raises.

WsrelayError
├── InvalidPID          (ValueError)    text that is not a PID
├── InvalidName         (ValueError)    text that is not a name, or a process that cannot have one
├── InvalidTarget       (ValueError)    text or object that does not name a function
├── UnknownHost         (LookupError)   no process host has that name
├── ReservedTopic       (ValueError)    topics starting with "@" are reserved for wsrelay
├── PayloadError        (TypeError)     a payload that is not data
├── ChannelClosed                       nothing more will arrive on this channel
├── NotAProcess         (RuntimeError)  called where there is no process or node to do it
├── RoomReceives        (RuntimeError)  a call that takes what arrives, inside a `Room`
├── HostFull            (RuntimeError)  the host runs as many workers as it may
├── HostFailed          (RuntimeError)  the host's template could not load what it had to
├── NodeBusy            (RuntimeError)  too much waits for the way to another node
├── NoQuorum            (RuntimeError)  the cluster cannot decide who has a name now
├── CannotJoin          (RuntimeError)  the node cannot be part of the cluster
├── NameTaken           (ValueError)    the name belongs to another process
├── NameNotFound        (LookupError)   no process has that name
├── MissingExtra        (ImportError)   an extra that is needed is not installed
├── InvalidMessage      (ValueError)    a client sent something else than what it was read as
├── NotAllowed          (PermissionError) what a walled-in host may not do to others
├── TooMany             (RuntimeError)  more names, groups, monitors, links or timers than allowed
├── ProcessError                        the process of an `exec` or a `call` ended with an error
├── CallError                           the process that was called refuses to answer
├── InvalidCall         (ValueError)    a call that could never be answered
├── InvalidReply        (RuntimeError)  an answer to what wants none, or a second one
├── RelayRefused        (ValueError)    an X-WS-Relay header or a command that is wrong
└── WireError           (ValueError)    bytes on a pipe that are not a frame
"""

from __future__ import annotations

import re

__all__ = [
    "CallError",
    "CannotJoin",
    "ChannelClosed",
    "HostFailed",
    "HostFull",
    "InvalidCall",
    "InvalidMessage",
    "InvalidName",
    "InvalidPID",
    "InvalidReply",
    "InvalidTarget",
    "MissingExtra",
    "NameNotFound",
    "NameTaken",
    "NoQuorum",
    "NodeBusy",
    "NotAProcess",
    "NotAllowed",
    "PayloadError",
    "ProcessError",
    "RelayRefused",
    "ReservedTopic",
    "RoomReceives",
    "TooMany",
    "UnknownHost",
    "WireError",
    "WsrelayError",
]


class WsrelayError(Exception):
    """Base of everything that wsrelay raises."""


class MissingExtra(WsrelayError, ImportError):  # noqa: N818 - like its siblings
    """The operation needs an extra that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed; it comes with: pip install 'wsrelay[{extra}]'"
        )
        self.extra = extra


class InvalidPID(WsrelayError, ValueError):  # noqa: N818 - public name
    """The text is not of the form `{node@host|id}`."""

    def __init__(self, text: object) -> None:
        super().__init__(
            f"{text!r:.200} is not a PID; one looks like {{local@app:processes|k3f9.1f}}"
        )


class InvalidName(WsrelayError, ValueError):  # noqa: N818 - like InvalidPID
    """The text cannot be a registered name, or the process cannot have one."""


class InvalidTarget(WsrelayError, ValueError):  # noqa: N818 - public name
    """A spawn target that has no known form; see `wsrelay.process.spawn`."""


class UnknownHost(WsrelayError, LookupError):  # noqa: N818 - public name
    """A process host that this node, or the node that `host@node` names, does not have."""

    def __init__(self, host: object, known: list[str]) -> None:
        if isinstance(host, str) and "@" in host:
            super().__init__(
                f"no process host {host!r:.200}: write host@node with the name of a node that is "
                "in the cluster and has that host"
            )
            return
        super().__init__(
            f"no process host {host!r:.200}; this node has {', '.join(sorted(known))}. "
            "The second argument of spawn is the host; the target's arguments come after it: "
            "spawn(target, None, arg, ...)"
        )


class ReservedTopic(WsrelayError, ValueError):  # noqa: N818 - public name
    """Topics starting with `@` cannot be sent by user code."""

    def __init__(self, topic: object) -> None:
        super().__init__(
            f"topic {topic!r:.200} is refused: a topic is text that does not start with @"
        )


class PayloadError(WsrelayError, TypeError):
    """A payload holds something that is not data."""


class ChannelClosed(WsrelayError):  # noqa: N818 - public name
    """The channel is closed and everything that was queued has been read."""


class NotAProcess(WsrelayError, RuntimeError):  # noqa: N818 - public name
    """The call was made outside a process and a node, and needs one of them."""


class RoomReceives(WsrelayError, RuntimeError):  # noqa: N818 - reads as a sentence
    """Inside a `Room`, whose hooks get what arrives, something else would take it."""

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(f"{call} would take from the room what goes to its hooks: use {instead}")


class HostFull(WsrelayError, RuntimeError):  # noqa: N818 - public name
    """The process host already runs `max_processes` workers."""

    host = ""
    """The host's name; empty if the error came over a pipe."""

    def __init__(self, host: str, limit: int) -> None:
        super().__init__(f"process host {host} is full: {limit} of {limit} processes run")
        self.host = host


class HostFailed(WsrelayError, RuntimeError):  # noqa: N818 - reads as a sentence
    """The template could not load a preloaded module or a declared script.

    `details` is the traceback text of the user's code, or empty.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class NodeBusy(WsrelayError, RuntimeError):  # noqa: N818 - public name
    """The way to another node is full: what was to be sent there has not been sent."""


class NoQuorum(WsrelayError, RuntimeError):  # noqa: N818 - public name
    """The cluster could not decide in time who has a name; asking again later may help."""


class CannotJoin(WsrelayError, RuntimeError):  # noqa: N818 - reads as a sentence
    """The node cannot be part of its cluster; the text says why, and what would help."""


class NameTaken(WsrelayError, ValueError):  # noqa: N818 - public name
    """The registered name belongs to another living process."""


class NameNotFound(WsrelayError, LookupError):  # noqa: N818 - public name
    """No living process is registered under the name."""


class InvalidMessage(WsrelayError, ValueError):  # noqa: N818 - public name
    """A message is not what it was read as; the text says what the client sent."""


class NotAllowed(WsrelayError, PermissionError):  # noqa: N818 - like the others
    """A process of a walled-in host asked for something that its host is not allowed to do.

    The message names the option of its host that would allow it, if there is one.
    """


class TooMany(WsrelayError, RuntimeError):  # noqa: N818 - like the others
    """A process asked the node to keep more names, groups, timers and the like than allowed."""

    def __init__(self, what: str, most: int | str) -> None:
        super().__init__(f"{what} limit of {most} reached")


class ProcessError(WsrelayError):
    """The process that `exec` ran, or that `call` asked, ended with an error.

    For a `call` it may also be that there is no such process (kind `noproc`), or that it returned
    without an answer (`no_reply`).

    `kind`, `message` and `traceback` (the worker's, as text, or None) are those of its `ExitError`.
    """

    def __init__(self, kind: str, message: str, traceback: str | None = None) -> None:
        super().__init__(phrase(kind, message) + (f"\n\n{traceback}" if traceback else ""))
        self.kind = kind
        self.message = message
        self.traceback = traceback


class CallError(WsrelayError):
    """The process that was called has refused to answer; its text is that of `message.refuse`."""


class InvalidCall(WsrelayError, ValueError):  # noqa: N818 - like InvalidPID
    """A call that could never be answered: of the caller, its successor, a connection, a node."""


class InvalidReply(WsrelayError, RuntimeError):  # noqa: N818 - like InvalidCall
    """An answer to a message that wants none, or that has had its answer."""


def phrase(kind: str, message: str) -> str:
    """Return the kind and message of an error as one phrase that does not repeat itself."""
    words = kind.replace("_", " ")
    said = {"error", *re.findall(r"\w+", message.lower())}  # `ZeroDivisionError: ...` says it too
    return message if said.issuperset(words.split()) else f"{words}: {message}"


class RelayRefused(WsrelayError, ValueError):  # noqa: N818 - reads as a sentence
    """The `X-WS-Relay` header (`docs/embedding.md`) or a command (`docs/messages.md`) is wrong."""


class WireError(WsrelayError, ValueError):
    """Bytes on a pipe that are not a frame; their writer must not be trusted any further."""
