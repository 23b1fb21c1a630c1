"""The handler of websocketd: lines in, lines out. `python lines.py echo|service`."""

import sys

from benchmark.served.work import serve


def echo() -> None:
    """Send each line back."""
    write, flush = sys.stdout.buffer.write, sys.stdout.buffer.flush
    for line in sys.stdin.buffer:
        write(line)
        flush()


def service() -> None:
    """Answer each line."""
    for line in sys.stdin:
        print(serve(line.rstrip("\n")), flush=True)


{"echo": echo, "service": service}[sys.argv[1]]()
