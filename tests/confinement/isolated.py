"""Hosts that give something up, and handlers that try to break out."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from support import until

from wsrelay import Filesystem, HostFailed, HostOptions, Isolation, Limits, Node, Result

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")

own_user = pytest.mark.parametrize(
    "user",
    [
        pytest.param(False, id="node's user"),
        pytest.param(True, id="another user", marks=as_root),
    ],
)
walls = pytest.mark.parametrize(
    "isolation",
    [
        pytest.param(Isolation(filesystem=Filesystem()), id="filesystem"),
        pytest.param(Isolation(network="none"), id="network"),
        pytest.param(Isolation(filesystem=Filesystem(), network="none"), id="both"),
    ],
)


def by(stranger: str, user: bool) -> dict[str, Any]:
    """Whose the processes of a host are."""
    return {"user": stranger, "group": stranger} if user else {}


def unused_uid() -> str:
    """The number of a user who has no account and, for the system counts them, no process."""
    taken = {user.pw_uid for user in pwd.getpwall()}
    for running in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            taken |= {*running.uids()}
    return str(random.choice([*set(range(20_000, 60_000)) - taken]))  # noqa: S311 - no secret


@contextlib.contextmanager
def reachable_script() -> Iterator[Path]:
    """The script of handlers, where every user can reach it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield Path(shutil.copy(Path(__file__).with_name("breakouts.py"), folder))


class Host(NamedTuple):
    """A host with the script's handlers preloaded."""

    script: Path
    isolation: Isolation
    limits: Limits = Limits()

    @property
    def options(self) -> HostOptions:
        return HostOptions(
            isolation=self.isolation,
            limits=self.limits,
            targets=(f"{self.script}:double",),
            stop_timeout=2.0,
        )

    async def ending(self, node: Node, handler: str, *args: Any) -> Result:
        """How a process ends."""
        results: list[Result] = []
        pid = node.spawn(f"{self.script}:{handler}", None, *args)
        node.when_ended(pid, results.append)
        await until(lambda: results, "the process has ended")
        return results[0]

    async def value(self, handler: str, *args: Any) -> Any:
        """What a handler returns."""
        async with Node(hosts=[self.options]) as node:
            result = await self.ending(node, handler, *args)
        assert result.error is None, result.error
        return result.value


async def refusal(isolation: Isolation, **options: Any) -> str:
    """Why a host does not start."""
    async with Node(hosts=[HostOptions(isolation=isolation, **options)]) as node:
        with pytest.raises(HostFailed) as refused:
            await node.loaded()
    return str(refused.value)
