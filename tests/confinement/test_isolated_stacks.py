"""The stacks of processes that are walled in, or another user's, are shown as those of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from isolated import as_root, on_linux, reachable_script, unused_uid, walls

from wsrelay import HostOptions, Isolation, Node

pytestmark = [pytest.mark.anyio, on_linux]


async def stack(script: Path, isolation: Isolation) -> str:
    """The stack of an echo that waits for messages."""
    async with Node(hosts=[HostOptions(targets=(f"{script}:echo",), isolation=isolation)]) as node:
        pid = node.spawn(f"{script}:echo")
        assert await node.started(pid) is None
        while " in echo" not in (text := await node.engine.stack(pid)):
            pass
        node.terminate_all()
    return text


@walls
async def test_walls_are_no_obstacle_to_a_stack(isolation: Isolation) -> None:
    with reachable_script() as script:
        assert "Main thread" in await stack(script, isolation)


@as_root
async def test_another_user_is_no_obstacle_to_a_stack() -> None:
    with reachable_script() as script:
        user = unused_uid()
        assert "Main thread" in await stack(script, Isolation(user=user, group=user))
