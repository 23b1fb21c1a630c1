"""The commands of an operator who asks node `a` of a cluster, and what its nodes run."""

from __future__ import annotations

import asyncio

import peer_handlers
from commands import run_here

from wsrelay.values.targets import TargetEntry

ENTRIES = {"answer": TargetEntry(f"{peer_handlers.__file__}:answer")}


async def wsrelay(*arguments: str, code: int = 0) -> str:
    """Run the command in this process; gives what it printed, on standard error if it fails."""
    done = await asyncio.to_thread(run_here, *arguments, "--node", "a")
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout
