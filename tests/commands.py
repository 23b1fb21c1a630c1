"""The `wsrelay` command in the tests' own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator

from wsrelay.cli.main import main

_PATIENCE = 20.0


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a thread, as it is, with its real output and exit code.

    Only the start of another interpreter is left out, which takes longer than all the rest. What
    serves or has a terminal needs a process of its own.
    """
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(_run(arguments)), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    assert done, f"it does not end: {arguments}"
    return done[0]


def _run(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        code: object = None
        with _written_to(1, out.fileno()), _written_to(2, err.fileno()):
            try:
                main([*arguments], prog_name="wsrelay")
            except SystemExit as end:
                code = end.code
        assert isinstance(code, int)
        out.seek(0)
        err.seek(0)
        said, complained = out.read().decode(), err.read().decode()
    return subprocess.CompletedProcess(arguments, code, said, complained)


@contextlib.contextmanager
def _written_to(number: int, descriptor: int) -> Iterator[None]:
    """Let a standard stream lead to a file, with and without Python's buffer."""
    redirect = contextlib.redirect_stdout if number == 1 else contextlib.redirect_stderr
    before = os.dup(number)
    os.dup2(descriptor, number)
    try:
        with open(number, "w", closefd=False) as stream, redirect(stream):
            yield
    finally:
        os.dup2(before, number)
        os.close(before)
