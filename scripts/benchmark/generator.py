"""The bench's end of the load generator."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

__all__ = ["Generator", "MeasureError"]

_PATIENCE = 180.0


class MeasureError(Exception):
    """A measure could not be taken; the text says why."""


class Generator:
    """A load generator in a process of its own; a broken one is replaced at the next order."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, do: str, **options: Any) -> dict[str, float]:
        """Have a job done and return its figures; raises `MeasureError`."""
        if self._process is None:
            self._start()
        try:
            self._socket.sendall(json.dumps({"do": do, **options}).encode() + b"\n")
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            self.stop()
            raise MeasureError("the load generator stopped answering")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(str(answer["error"]))
        return answer

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_PATIENCE)
        self._answers = self._socket.makefile(encoding="utf-8")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmark.load", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the process; its connections go with it."""
        if self._process is not None:
            self._answers.close()
            self._socket.close()
            self._process.kill()
            self._process.wait()
            self._process = None
