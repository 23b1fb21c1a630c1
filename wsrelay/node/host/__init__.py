"""The node's side of a process host: its template, its workers, and the pipes to them."""

from __future__ import annotations

from .log import WORKER_LOG, own_text
from .pipe import NodePipe
from .process_host import ProcessHost
from .unfinished import Unfinished
from .worker import Worker

__all__ = ["WORKER_LOG", "NodePipe", "ProcessHost", "Unfinished", "Worker", "own_text"]
