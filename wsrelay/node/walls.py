"""What processes of a walled-in host may do: a rule for each frame that a worker can write.

A process of such a host may send to anyone, monitor anyone, and look up anyone. Outside its host it
may not start, end, link or move anyone, or take a name, unless the `Rights` of its host add that.
The dead need no protection: a request about them affects only the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from msgspec import UNSET

from wsrelay import wire
from wsrelay.session import command
from wsrelay.values.message import CLOSE, CONTROL
from wsrelay.values.pid import PID
from wsrelay.values.rights import Rights

__all__ = ["RULES", "NodeView", "Reach", "Rule", "check_start_as"]

Reach = Callable[[str], None]
"""Raises `NotAllowed` for a receiver that a message must not reach.

It is called when the receiver's turn comes: with many receivers that may be later, and clients move
in the meantime.
"""

Rule = Callable[[Any, PID, Rights, "NodeView"], Reach | None]
"""Takes frame, process, rights and view; raises `NotAllowed` if the whole frame is refused."""


class NodeView(Protocol):
    """What the rules look at; `to` is a PID or a name."""

    def host_of(self, to: str) -> str | None:
        """Return the host of a living process (for a connection, its target's), or None."""

    def is_connection(self, to: str) -> bool:
        """Whether it is a living connection."""

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry with that id, None if there is none."""

    def is_registered(self, name: str) -> bool:
        """Whether a process is registered under the name."""

    def holds(self, caller: PID, name: str) -> bool:
        """Whether the caller has been cancelled and still holds that exclusive name."""

    def awaits(self, caller: PID, pid: str) -> bool:
        """Whether the process was started by an `exec` of the caller that still waits."""


def _spawn(frame: wire.SpawnFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    home = sight.home(frame.target) if frame.host != rights.host else None
    rights.check_spawn(frame.host, frame.target, home, plain=frame.plain, linked=frame.linked)


def _exec(frame: wire.ExecFrame, me: PID, rights: Rights, sight: NodeView) -> None:
    _spawn(frame.spawn, me, rights, sight)


def _get_or_spawn(frame: wire.GetOrSpawnFrame, me: PID, rights: Rights, sight: NodeView) -> None:
    if not sight.is_registered(frame.name):  # otherwise it is only a lookup
        check_start_as(frame, me, rights, sight)


def check_start_as(frame: wire.GetOrSpawnFrame, me: PID, rights: Rights, sight: NodeView) -> None:
    """Raise `NotAllowed` if the frame may only find a process, and start none."""
    rights.check_name(frame.name)
    _spawn(frame.spawn, me, rights, sight)


def _control(what: str, to: str, rights: Rights, sight: NodeView) -> None:
    if (host := sight.host_of(to)) is not None:
        rights.check_control(what, to if to.startswith("{") else repr(to), host)


def _cancel(frame: wire.CancelFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    _control("cancel", frame.to, rights, sight)


def _terminate(frame: wire.TerminateFrame, me: PID, rights: Rights, sight: NodeView) -> None:
    if not sight.awaits(me, frame.to):  # `exec` terminates what it runs at its timeout
        _control("terminate", frame.to, rights, sight)


def _relate(frame: wire.RelateFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    if frame.kind in ("link", "unlink"):
        _control("link to" if frame.kind == "link" else "unlink", frame.to, rights, sight)


def _join_group(frame: wire.JoinGroupFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    _control("put into groups", frame.to, rights, sight)


def _leave_group(frame: wire.LeaveGroupFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    _control("take out of groups", frame.to, rights, sight)


def _register(frame: wire.RegisterFrame, _: PID, rights: Rights, sight: NodeView) -> None:
    _control("name", frame.pid, rights, sight)
    rights.check_name(frame.name)


def _unregister(frame: wire.UnregisterFrame, me: PID, rights: Rights, sight: NodeView) -> None:
    if not sight.holds(me, frame.name):  # then it is its own, whoever is to have it next
        _control("unregister", frame.name, rights, sight)


def _cancel_timer(frame: wire.CancelTimerFrame, _: PID, rights: Rights, __: NodeView) -> None:
    host = frame.timer.partition("@")[2].partition("|")[0]
    rights.check_control("cancel the timer", frame.timer, host)


def _send(frame: wire.SendFrame, _: PID, rights: Rights, sight: NodeView) -> Reach | None:
    return _reach(frame.topic, frame.payload, rights, sight)


def _broadcast(frame: wire.BroadcastFrame, _: PID, rights: Rights, sight: NodeView) -> Reach | None:
    return _reach(frame.topic, frame.payload, rights, sight)


def _reach(topic: str, content: bytes, rights: Rights, sight: NodeView) -> Reach | None:
    """Check each client that is to be closed or controlled, and the target it is to move to.

    A client brings its metadata along, which its new target trusts: so no client may be moved to a
    process that the sender may not control.
    """
    if topic not in (CLOSE, CONTROL):
        return None
    given = command.parse(topic, content) if topic == CONTROL else None
    target = given.target_pid if isinstance(given, command.ControlCommand) else UNSET

    def reach(to: str) -> None:
        if sight.is_connection(to):  # for a worker it is a message like any other
            _control(f"send {topic} to", to, rights, sight)
            if target is not UNSET:
                _control("transfer clients to", target, rights, sight)

    return reach


RULES: Final[Mapping[type[wire.Frame], Rule | None]] = {
    # What it reports about itself
    wire.ReadyFrame: None,
    wire.AckFrame: None,
    wire.LogFrame: None,
    wire.DoneFrame: None,
    wire.OptionsFrame: None,
    wire.JoinReadFrame: None,
    # What all may request
    wire.LookupFrame: None,
    wire.MembersFrame: None,
    wire.DrainFrame: None,
    wire.FenceFrame: None,
    wire.RosterFrame: None,
    wire.WatchFrame: None,
    wire.UnwatchFrame: None,
    # Calling is sending, to what is no client; a process can answer only calls that it was given
    wire.CallFrame: None,
    wire.AnswerFrame: None,
    wire.ForgetFrame: None,
    # The others
    wire.SendFrame: _send,
    wire.BroadcastFrame: _broadcast,
    wire.SpawnFrame: _spawn,
    wire.ExecFrame: _exec,
    wire.GetOrSpawnFrame: _get_or_spawn,
    wire.CancelFrame: _cancel,
    wire.TerminateFrame: _terminate,
    wire.RelateFrame: _relate,
    wire.JoinGroupFrame: _join_group,
    wire.LeaveGroupFrame: _leave_group,
    wire.RegisterFrame: _register,
    wire.UnregisterFrame: _unregister,
    wire.SendAfterFrame: None,  # the rule of its message is asked when that is sent
    wire.CancelTimerFrame: _cancel_timer,
}
