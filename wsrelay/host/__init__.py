"""Process hosts: templates, the workers forked from them, and the pipes to those."""

from .cgroup import check as check_cgroup
from .isolation import Filesystem, Isolation, doubts
from .limits import Limits
from .log import WORKER_LOG, own_text
from .options import HostOptions
from .pipe import NodePipe
from .process_host import ProcessHost
from .titles import worker_title
from .unfinished import Unfinished
from .worker import Worker

__all__ = [
    "WORKER_LOG",
    "Filesystem",
    "HostOptions",
    "Isolation",
    "Limits",
    "NodePipe",
    "ProcessHost",
    "Unfinished",
    "Worker",
    "check_cgroup",
    "doubts",
    "own_text",
    "worker_title",
]
