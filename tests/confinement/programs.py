"""What ordinary Python programs do, as handlers of a walled host; each returns what it came to."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any


def double(number: int) -> int:
    return number * 2


def in_children() -> Any:
    return {
        "run": subprocess.run(["/bin/echo", "hello"], check=True, capture_output=True).stdout,
        "shell": subprocess.check_output(["/bin/sh", "-c", "echo $((20 + 1)) | cat"]),
        "python": subprocess.check_output([sys.executable, "-c", "print(6 * 7)"]),
        "pid": os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1],
    }


def in_processes(method: str) -> Any:
    context: Any = multiprocessing.get_context(method)
    queue, event = context.Queue(), context.Event()
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(queue, event, there))
    child.start()
    event.set()
    said = [queue.get(timeout=60), here.recv()]
    child.join(60)
    with context.Pool(2) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
        doubled = [*pool.map(double, [1, 2]), executor.submit(double, 3).result(60)]
    memory = shared_memory.SharedMemory(create=True, size=100)
    memory.close()
    memory.unlink()
    return [said, child.exitcode, doubled]


def _child(queue: Any, event: Any, pipe: Any) -> None:
    event.wait(60)
    queue.put("by a queue")
    pipe.send("by a pipe")


def in_threads() -> Any:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append("a thread"))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(3) as executor:
        return [*seen, *executor.map(double, range(3))]


def in_tasks() -> Any:
    async def tasks() -> Any:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
        said, _ = await child.communicate(b"by cat")
        thread = await asyncio.to_thread(double, 4)
        return [said, thread, await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3)))]

    return asyncio.run(tasks())


def in_databases() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for mode in ("delete", "wal"):
            database = sqlite3.connect(f"{folder}/{mode}.sqlite")
            with database:
                database.execute(f"pragma journal_mode = {mode}")
                database.execute("create table t (n)")
                database.executemany("insert into t values (?)", [(1,), (2,)])
            found += database.execute("select sum(n) from t").fetchone()
            database.close()
        return found


def in_tls() -> Any:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.pending > 0


def in_files() -> Any:
    with tempfile.TemporaryDirectory() as name, tempfile.NamedTemporaryFile("w+") as named:
        folder = Path(name)
        (folder / "a" / "b").mkdir(parents=True, mode=0o700)
        (folder / "file").write_text("content")
        (folder / "file").touch()
        shutil.copyfile(folder / "file", folder / "a" / "copy")
        (folder / "a" / "copy").rename(folder / "a" / "b" / "moved")
        os.link(folder / "file", folder / "linked")
        (folder / "symbolic").symlink_to("file")
        os.truncate(folder / "file", 3)
        with tarfile.open(folder / "all.tar", "w") as archive:
            archive.add(folder / "a", "packed")
        with tarfile.open(folder / "all.tar") as archive:
            archive.extract("packed/b/moved", folder)
        shutil.rmtree(folder / "a")
        named.write("more")
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return [(folder / "symbolic").read_text(), found]


def copy() -> Any:
    """What `filesystem` is documented not to allow: to set the mode of a file."""
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as named:
        try:
            shutil.copy(named.name, folder)
            shutil.copy2(named.name, folder)
        except PermissionError as error:
            return error.strerror
    return "did"
