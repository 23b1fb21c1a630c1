"""The real `wsrelay console` in an OS process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Self

from running import TIMEOUT, Lines


class ConsoleCommand:
    """`wsrelay console OPTIONS` on a free port; entering waits for the address that it prints."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.command = [sys.executable, "-m", "wsrelay", "console", "--port", str(port), *options]
        self.address = ""

    def __enter__(self) -> Self:
        # Unbuffered output would hide that the line is not flushed.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        try:
            self.address = self.stdout.line("http://")
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].partition("/")[0])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
            self.stdout.join()
            self.stderr.join()
            assert not [line for line in self.stderr.lines if "crashed" in line], self.stderr.text
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
