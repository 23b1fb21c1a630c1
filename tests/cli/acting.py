"""A script that does what its clients say, and how tests reach its server."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
from running import gone

from wsrelay import __main__ as command

ROOT = str(Path(command.__file__).parent)

ACTOR = """
    import contextlib, json, logging, os, signal, subprocess, sys, time
    from wsrelay import process

    def tell(client, **news):
        process.send(client, "ws.send", {"type": "text", "data": json.dumps(news)})

    def crash():
        raise ZeroDivisionError("on purpose")

    def handler():
        for message in process.inbox():
            client = message.payload["client_pid"]
            match message.topic:
                case "ws.join":
                    metadata = message.payload["metadata"]
                    tell(client, os_pid=os.getpid(), pid=process.pid(), metadata=metadata)
                case "ws.heartbeat":
                    tell(client, **message.payload)
                case "ws.message":
                    match message.payload["data"].split(" ", 1):
                        case ["say", text]:
                            tell(client, said=text)
                        case ["crash"]:
                            crash()
                        case ["print", text]:
                            print(text)
                        case ["print_error", text]:
                            print(text, file=sys.stderr)
                        case ["log", text]:
                            logging.getLogger("actor").warning(text)
                        case ["input"]:
                            tell(client, read=sys.stdin.read())
                        case ["breakpoint"]:
                            breakpoint()
                        case ["spin"]:
                            tell(client, spinning=True)
                            while True:
                                pass
                        case ["deaf"]:
                            signal.signal(signal.SIGTERM, signal.SIG_IGN)
                            tell(client, deaf=True)
                            while True:
                                with contextlib.suppress(SystemExit):
                                    time.sleep(600)
                        case ["grandchild"]:
                            code = "import time; time.sleep(600)"
                            child = subprocess.Popen(
                                [sys.executable, "-c", code], start_new_session=True
                            )
                            tell(client, os_pid=child.pid)
        print("ended in order")
"""

Write = Callable[[str, str], Path]


def written(folder: Path, name: str, text: str) -> Path:
    """A script in that folder."""
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def ended(os_pid: int) -> bool:
    try:
        return gone(psutil.Process(os_pid))
    except psutil.NoSuchProcess:
        return True
