"""The node's side of a process host: its template, its workers, and the pipes to them."""

from __future__ import annotations

from .incarnation import Incarnation
from .lanes import Lanes
from .log import WORKER_LOG, Intake, own_text, trace_ids
from .pipe import NodePipe
from .process_host import ProcessHost
from .unfinished import Unfinished

__all__ = [
    "WORKER_LOG",
    "Incarnation",
    "Intake",
    "Lanes",
    "NodePipe",
    "ProcessHost",
    "Unfinished",
    "own_text",
    "trace_ids",
]
