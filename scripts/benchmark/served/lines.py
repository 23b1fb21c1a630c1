"""The handler of websocketd: lines in, lines out. `python lines.py echo|service`."""

import sys

from benchmark.served.work import serve


def echo(line: bytes) -> bytes:
    """Return the line."""
    return line


def service(line: bytes) -> bytes:
    """Answer the line."""
    return serve(line[:-1].decode()).encode() + b"\n"


answer = {"echo": echo, "service": service}[sys.argv[1]]
for text in sys.stdin.buffer:
    sys.stdout.buffer.write(answer(text))
    sys.stdout.buffer.flush()
