"""Whether the ASGI server around a node runs several worker processes, each with a node."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from multiprocessing.process import current_process
from typing import Any

__all__ = ["server_workers", "warn_of_siblings"]

logger = logging.getLogger(__name__)


def warn_of_siblings() -> None:
    """Warn if the server runs several worker processes, since each has a node of its own."""
    if (workers := server_workers()) > 1:
        logger.warning(
            "this server runs %d worker processes and each has a node of its own: they share no "
            "names, groups or PIDs, so clients of one room meet only by chance. Run one worker "
            "(--workers 1): the rooms' processes use the other cores anyway",
            workers,
        )


def server_workers() -> int:
    """Return how many worker processes the ASGI server was told to run, as far as can be seen.

    uvicorn (its command, `fastapi run` and `uvicorn.run`) and hypercorn start each with
    multiprocessing and pass it their configuration; gunicorn forks, and its command line remains.
    A configuration file of gunicorn's is not seen.
    """
    given: Any = getattr(current_process(), "_kwargs", {})
    if isinstance(workers := getattr(given.get("config"), "workers", None), int):
        return workers
    if not os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return 1
    words = [*shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")), *sys.argv[1:]]
    wanted = os.environ.get("WEB_CONCURRENCY", "1")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--workers", "-w"):
            wanted = value or following
        elif word.startswith("-w"):
            wanted = word.removeprefix("-w")
    return int(wanted) if wanted.isdecimal() else 1
