"""Sessions in any state, and the PIDs that their tests talk of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsrelay.session import command
from wsrelay.session.command import ControlCommand, InvalidCommand
from wsrelay.session.effects import ConnectionEnded, Effect
from wsrelay.session.header import RelayHeader, TargetSpec
from wsrelay.session.machine import ConnectionState, Session
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID

CLIENT = PID("{local@gateway|k.0-1}")
A = PID("{local@app:processes|k.0-2}")
B = PID("{local@app:processes|k.0-3}")
SENDER = PID("{local@app:processes|k.0-5}")

HANDSHAKING, OPEN, CLOSING, CLOSED = ConnectionState
RETURNED = Result("value")


def fine(_: PID) -> str | None:
    return None


def a_session(
    state: ConnectionState = OPEN,
    *,
    limit: int = 100,
    overflow: Overflow = Overflow.CLOSE,
    name: str | None = None,
    **fields: Any,
) -> Session:
    """A session in that state; CLOSING and CLOSED by way of a close with 4000 `over`.

    `name`: its target was found or started under that name.
    """
    if name is not None:
        fields["spec"] = TargetSpec(target="app:room", name=name)
    relay = RelayHeader(target_pid=A, **fields)
    session = Session(CLIENT, relay, limit=limit, overflow=overflow)
    if state is not HANDSHAKING:
        session.opened(100.0)
    if state in (CLOSING, CLOSED):
        session.command(command.CloseCommand(4000, "over"), SENDER, fine)
    if state is CLOSED:
        session.client_gone(1006)
    assert session.state is state
    return session


def control(session: Session, **fields: Any) -> list[Effect]:
    return session.command(ControlCommand(**fields), SENDER, fine)


def ended_with(code: int, reason: str = "") -> ConnectionEnded:
    """What a connection that was closed with this code ends with."""
    value = {"code": code, "reason": reason}
    if code in (1000, 1001, 1005) or 3000 <= code <= 4999:
        return ConnectionEnded(Result(value))
    kind = ExitKind.DISCONNECTED if code == 1006 else ExitKind.ERROR
    return ConnectionEnded(Result(value, ExitError(kind, f"closed with {code} {reason}".rstrip())))


Input = Callable[[Session], list[Effect]]

INPUTS: dict[str, Input] = {
    "a client's text": lambda s: s.message("text"),
    "a client's bytes": lambda s: s.message(b"bytes"),
    "the client is gone": lambda s: s.client_gone(1001, "bye"),
    "a heartbeat is due": lambda s: s.heartbeat(103.5),
    "a message was written": lambda s: s.wrote(),
    "ws.send": lambda s: s.command(command.SendCommand("text"), SENDER, fine),
    "ws.close": lambda s: s.command(command.CloseCommand(3000, "bye"), SENDER, fine),
    "ws.control, a transfer": lambda s: s.command(ControlCommand(target_pid=B), SENDER, fine),
    "ws.control, metadata": lambda s: s.command(ControlCommand(metadata={"b": 2}), SENDER, fine),
    "an unusable command": lambda s: s.command(InvalidCommand("ws.send", "wrong"), SENDER, fine),
    "the target returned": lambda s: s.target_exited(A, RETURNED, join_read=True),
    "another process exited": lambda s: s.target_exited(B, RETURNED, join_read=True),
    "cancel": lambda s: s.cancel("enough"),
    "the node shuts down": lambda s: s.shut_down(),
}

METADATA = {"a": 1}


def exit_of(kind: ExitKind, message: str = "message") -> Result:
    return Result(error=ExitError(kind, message, "Traceback: secret"))
