"""Handlers that have relations, timers and calls that wait."""

from __future__ import annotations

from wsrelay import process


def busy(callee: str, watched: str) -> None:
    """Have all that a process may have, then wait for an answer that does not come."""
    process.registry.register("busy")
    process.registry.register("busy too")
    process.groups.join("crowd")
    process.monitor(watched)
    process.link(watched)
    process.set_options(trap_links=True, end_when_empty="2m")
    process.send_after(600, process.pid(), "later")
    process.send_after(60, process.pid(), "never").cancel()
    process.send_after(3_000, process.pid(), "much later")
    process.spawn(silent)
    process.call(callee, "anybody there?", timeout=None)


def silent() -> None:
    """Answer nothing."""
    for _ in process.inbox():
        pass
