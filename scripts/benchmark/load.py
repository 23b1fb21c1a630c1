"""The load generator's own process: `python -m benchmark.load DESCRIPTOR`.

Orders come over a socket, a JSON object a line, `{"do": "echo", ...}`; so do the answers, which
tell besides the figures which part of its core the generator used.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import sys
import time

import uvloop

from .jobs import Jobs, known

__all__ = ["main"]


async def _serve(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=sock)
    jobs = known(Jobs())
    while line := await reader.readline():
        order = json.loads(line)
        gc.collect()
        gc.disable()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            answer = await jobs[order.pop("do")](**order)
        except TimeoutError:
            answer = {"error": "the server did not answer in time"}
        except Exception as error:  # noqa: BLE001 (whatever it was, the bench shall know)
            answer = {"error": f"{type(error).__name__}: {error}"}
        used = time.process_time() - cpu
        answer["load"] = used / (time.perf_counter() - wall)
        gc.enable()
        writer.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Serve orders until the other end of the socket is closed."""
    logging.getLogger("picows").setLevel(logging.ERROR)  # it tells when large messages have to wait
    sock = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sock))


if __name__ == "__main__":
    main()
