"""Groups of several nodes: their members are told, and a message for a group crosses once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from wsrelay.cluster.frames import (
    AddMemberFrame,
    GroupMessageFrame,
    Membership,
    MembershipsFrame,
    RemoveMemberFrame,
)
from wsrelay.cluster.memberships import Memberships
from wsrelay.errors import TooMany
from wsrelay.kernel import Signal
from wsrelay.node.endpoint import Mail
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID, nameable
from wsrelay.values.presence import Kind

from .exchange import Exchange, PeerGone
from .neighbour import Neighbour

__all__ = ["PeerGroups"]

logger = logging.getLogger(__name__)

_TURN: Final = 64
"""Memberships that are taken in one turn."""


class PeerGroups:
    """Tells the other nodes of the members here, and takes what they tell of theirs."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._engine = exchange.engine
        self._kernel = exchange.kernel
        self._memberships = Memberships(exchange.node.name, exchange.kernel.groups)
        self._joining: Counter[tuple[str, str]] = Counter()
        """Groups with the nodes where somebody was made to join that has not been told yet."""
        exchange.kernel.groups.observer = self._changed
        exchange.on(MembershipsFrame, self._told)
        exchange.on(GroupMessageFrame, self._sent)
        exchange.on(RemoveMemberFrame, self._left)
        exchange.answer(AddMemberFrame, self._joined)
        exchange.on_up.append(self._tell_all)
        exchange.on_down.append(self._down)

    # Members

    def _tell_all(self, neighbour: Neighbour) -> None:
        for portion in self._memberships.all():
            neighbour.way.send(MembershipsFrame(portion))

    def _changed(self, kind: Kind, group: str, pid: PID, meta: bytes) -> None:
        if self._exchange.neighbours and (
            told := self._memberships.changed(kind, group, pid, meta)
        ):
            for neighbour in self._exchange.neighbours.values():
                neighbour.way.send(MembershipsFrame([told]))

    def _told(self, neighbour: Neighbour, frame: MembershipsFrame) -> Iterator[None] | None:
        work = self._learn(neighbour, frame.members)
        if len(frame.members) > 1:
            return work
        for _ in work:
            pass
        return None

    def _learn(self, neighbour: Neighbour, told: Sequence[Membership]) -> Iterator[None]:
        for number, effects in enumerate(self._memberships.learn(neighbour.node, told), 1):
            if effects:
                self._engine.execute(effects)
            if number % _TURN == 0:
                yield

    def _down(self, neighbour: Neighbour) -> None:
        self._engine.execute(self._memberships.drop(neighbour.node))

    # Joining and leaving elsewhere

    def join(self, asker: PID, group: str, pid: PID, meta: bytes) -> None:
        """Do what `Elsewhere.join_group` does."""
        nameable(group)
        if (neighbour := self._exchange.of(pid)) is None:
            return
        asked = self._exchange.ask(neighbour, AddMemberFrame(0, group, str(pid), meta))
        key = neighbour.node, group
        self._joining[key] += 1

        def answered(future: asyncio.Future[None]) -> None:
            self._joining[key] -= 1
            if not self._joining[key]:
                del self._joining[key]
            if not future.cancelled() and (error := future.exception()) is not None:
                self._refused(asker, error)

        asked.add_done_callback(answered)
        neighbour.pace(self._engine.processes.get(asker))

    def _refused(self, asker: PID, error: BaseException) -> None:
        """End a process that has given too much, as its own node would; the node itself is told."""
        if isinstance(error, PeerGone):
            return
        if isinstance(error, TooMany) and asker in self._engine.processes:
            because = ExitError(ExitKind.LIMIT, str(error))
            self._engine.signal(asker, Signal.TERMINATE, because=because)
        else:
            what = "%s let a process of another node join a group: %s"
            logger.error(what, asker, error, extra=self._engine.about_pid(asker))

    def _joined(self, neighbour: Neighbour, frame: AddMemberFrame) -> None:
        pid = self._exchange.own(frame.pid)
        effects = self._kernel.join_group(frame.group, pid, neighbour.pid, frame.meta)
        self._engine.execute(effects)

    def leave(self, asker: PID, group: str, pid: PID) -> None:
        """Do what `Elsewhere.leave_group` does."""
        if (neighbour := self._exchange.of(pid)) is not None:
            neighbour.way.send(RemoveMemberFrame(group, str(pid)))
            neighbour.pace(self._engine.processes.get(asker))

    def _left(self, _: Neighbour, frame: RemoveMemberFrame) -> None:
        pid = self._exchange.own(frame.pid)
        self._engine.execute(self._kernel.leave_group(frame.group, pid))

    # Messages

    def split(self, group: str, members: Sequence[PID]) -> tuple[list[PID], dict[str, list[PID]]]:
        """Return the members that are here, and those elsewhere by node.

        Nodes where somebody was made to join just now are among these, perhaps without a member.
        """
        here: list[PID] = []
        there: dict[str, list[PID]] = {}
        for pid in members:
            if self._memberships.is_own(pid):
                here.append(pid)
            else:
                there.setdefault(str(pid.node), []).append(pid)
        for node, joined in self._joining:
            if joined == group and node in self._exchange.neighbours:
                there.setdefault(node, [])
        return here, there

    def _sent(self, neighbour: Neighbour, frame: GroupMessageFrame) -> Iterator[None]:
        sender = self._exchange.theirs(neighbour, frame.sender)
        members = self._kernel.groups.members(frame.group)
        here = [pid for pid in members if self._memberships.is_own(pid)]
        mail = Mail(sender, frame.topic, frame.payload)
        return self._exchange.router.route_in_portions(mail, here)
