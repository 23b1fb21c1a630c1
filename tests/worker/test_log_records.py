"""What stands in the node's log, how much of it waits, and what is told once."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logged import Write, crash, do, scripted
from msgspec import Raw
from running import Running, client, closed, received, until

from wsrelay import wire
from wsrelay.cli import logs
from wsrelay.node import fallback
from wsrelay.node.host import own_text
from wsrelay.node.host.log import Intake
from wsrelay.node.mistake_log import MistakeLog
from wsrelay.values.pid import PID
from wsrelay.wire import payload
from wsrelay.wire.logrecord import extra_of, fields


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return functools.partial(scripted, tmp_path / "script.py")


# What stands in a record


def test_a_record_arrives_with_its_own_logger_level_and_fields(write: Write) -> None:
    top = """
        logging.addLevelName(25, "NOTICE")
        class Odd:
            def __repr__(self): return "<odd>"
        class Bad:
            def __repr__(self): raise RuntimeError
        extra = {"user": "Ada", "tries": 3, "where": {"x": [1.5, None]}, "odd": Odd(), "bad": Bad(),
                 "long": "x" * 5000, "nan": float("nan"), "cut": "\\ud800", "pid": "mine"}
    """
    with (
        Running(write(top), "--log-format", "json", "--scope", "room") as running,
        client(running.ws("/ws/blue")) as websocket,
    ):
        websocket.send("logging.getLogger('shop.cart').log(25, 'it is %s', 'hot', extra=extra)")
        received(websocket)
        [os_pid] = running.workers()
        record = json.loads(running.stderr.line("it is hot"))
    assert record.pop("time")
    assert record.pop("pid").startswith("{local@processes|")
    assert record.pop("target").endswith("script.py:handler")
    [name] = record.pop("names")
    assert "blue" in name
    long = record["extra"].pop("long")
    assert long.startswith("x" * 200)
    assert len(long) < 250
    assert record == {
        "level": "notice",
        "logger": "shop.cart",
        "message": "it is hot",
        "os_pid": os_pid,
        "host": "processes",
        "extra": {
            "user": "Ada",
            "tries": 3,
            "where": {"x": [1.5, None]},
            "odd": "<odd>",
            "bad": "<Bad whose repr() raises RuntimeError>",
            "nan": None,
            "cut": "\\ud800",
            "pid": "mine",
        },
    }


@pytest.mark.parametrize(
    ("order", "kind", "text"),
    [
        ("os.kill(os.getpid(), 9)", "killed", "ended: killed: SIGKILL ("),
        ("process.terminate(process.pid()); threading.Event().wait()", "terminated", "ended: t"),
        ("sys.exit(3)", "exit", "ended: exit code 3 ("),
        ("1/0", "error", "crashed: ZeroDivisionError: division by zero\n"),
    ],
)
def test_an_end_is_told_with_names_target_os_pid_and_kind(
    write: Write, order: str, kind: str, text: str
) -> None:
    with Running(write(), "--log-format", "json", "--scope", "room") as running:
        with client(running.ws("/ws/blue")) as websocket:
            websocket.send("pass")
            received(websocket)
            [os_pid] = running.workers()
            websocket.send(order)
            assert closed(websocket)[0] == 1011
        record = json.loads(running.stderr.line('"exit"'))
    assert record["exit"] == kind
    assert record["level"] == ("warning" if kind == "terminated" else "error")
    assert record["os_pid"] == os_pid
    assert record["host"] == "processes"
    assert record["target"].endswith("script.py:handler")
    [name] = record["names"]
    assert "blue" in name
    assert record["message"].startswith(f"{record['pid']} {name} {text}")
    assert record["message"].count("terminated") == (kind == "terminated")


@pytest.fixture
def worker_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(1, logger="wsrelay.worker"):
        yield caplog


def test_a_hostile_record_leaves_nothing_behind_and_is_cut(
    worker_log: pytest.LogCaptureFixture,
) -> None:
    log = Intake("{local@processes|1}", 1000)
    many = {f"k{number}": "x" for number in range(1000)}
    known = len(logging.root.manager.loggerDict)
    for level in range(-5, 200):
        frame = wire.LogFrame(
            level, f"made up {level}" * 1000, "x" * 1_000_000, level_name="y" * 9999
        )
        frame.extra = Raw(payload.encode(many))
        log.take(frame, lambda: fields(pid=PID("{local@processes|1}"), host="processes"))
    assert len(logging.root.manager.loggerDict) == known
    assert len({record.levelno for record in worker_log.records}) <= 101
    record = worker_log.records[0]
    assert len(record.getMessage()) < 140_000
    assert len(record.name) <= 100
    assert len(record.levelname) < 250
    assert len(extra_of(record)) == 16


@pytest.mark.parametrize(
    "extra",
    [b"\xc1", b"\x01", b"\x91" * 5000 + b"\xc0", payload.encode({"x": "x" * 100_000}), b""],
)
def test_fields_that_are_none_are_left_out(
    worker_log: pytest.LogCaptureFixture, extra: bytes
) -> None:
    frame = wire.LogFrame(20, "x", "text", Raw(extra))
    Intake("{local@processes|1}", 1000).take(frame, fields)
    [record] = worker_log.records
    assert own_text(record) == "text"
    assert extra_of(record) == {}


def test_fields_cannot_pose_as_the_node_s_or_as_logging_s_own(
    worker_log: pytest.LogCaptureFixture,
) -> None:
    given = {"wsrelay_pid": "{local@processes|2}", "msg": "other", "args": (), "levelno": 50}
    frame = wire.LogFrame(20, "x", "text", Raw(payload.encode(given)))
    Intake("{local@processes|1}", 1000).take(frame, lambda: fields(pid="{local@processes|1}"))
    [record] = worker_log.records
    assert record.getMessage() == "{local@processes|1} x: text"
    assert record.levelno == 20
    assert vars(record)["wsrelay_pid"] == "{local@processes|1}"


@pytest.mark.parametrize("size", [1_000, 64 * 1024, 200_000])
@pytest.mark.parametrize("character", ["x", "\x1b", "é", "\n", "\U0001f600"])
def test_a_record_is_bounded_as_a_whole_however_its_characters_are_written(
    worker_log: pytest.LogCaptureFixture, character: str, size: int
) -> None:
    frame = wire.LogFrame(20, "x" * 1000, character * size)
    frame.extra = Raw(payload.encode({f"key {n}": "y" * 1000 for n in range(16)}))
    Intake("{local@processes|1}", 1000).take(frame, fields)
    [record] = worker_log.records
    whole = [record.getMessage(), own_text(record), record.name, repr(extra_of(record))]
    plain, own, *beside = (len(text.encode(errors="backslashreplace")) for text in whole)
    assert plain + sum(beside) < 66_000
    assert own + sum(beside) < 66_000
    assert (own_text(record) == character * size) == (plain < 40_000)


FORGED = "\\x1b]0;owned\\x07\\u202e\\x9b2J\\u2028\\n2026-11-27 00:00:00,000 ERROR   forged"
DRIVES = ("\x1b", "\x07", "\x9b", "\u202e", "\u2028")


@pytest.mark.parametrize("form", ["plain", "json"])
def test_what_a_process_logs_raises_or_prints_forges_no_line_and_drives_no_terminal(
    write: Write, form: str
) -> None:
    with Running(write(), "--log-format", form) as running:
        do(running, f"logging.warning('{FORGED}')", f"print('{FORGED}')")
        do(running, f"logging.warning('known', extra={{'{FORGED}': '{FORGED}'}})")
        do(running, f"logging.getLogger('{FORGED}').warning('made up')")
        crash(running, f"raise ValueError('{FORGED}')")
        crash(running, f"sys.exit('{FORGED}')")
        running.stderr.line("ended: exit code 1")
        told = subprocess.run(
            [sys.executable, "-m", "wsrelay", "logs", "--node", str(running.pid)],
            capture_output=True,
            check=True,
        ).stdout.decode()
        for text in (running.stderr.text, told):
            assert not [one for one in DRIVES if one in text]
            assert not [line for line in text.splitlines() if line.startswith("2026-11-27 00:00")]
        if form == "json":
            lines = [line for line in running.stderr.lines if "{" in line]
            messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
            assert eval(f"'{FORGED}'") in messages, "data is as it was"  # noqa: S307


def test_an_application_s_own_format_gets_the_text_of_processes_escaped(
    worker_log: pytest.LogCaptureFixture,
) -> None:
    frame = wire.LogFrame(20, "x\n2026 forged", "a\x1b[2J\n2026 forged", level_name="ODD\x1b")
    Intake("{local@processes|1}", 1000).take(frame, fields)
    [record] = worker_log.records
    theirs = logging.Formatter("%(levelname)s %(name)s %(message)s").format(record)
    pid = "{local@processes|1}"
    name = r"x\n2026 forged"
    assert theirs == rf"ODD\x1b {name} {pid} {name}: a\x1b[2J" + "\n    2026 forged"


# The writer


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[logging.Logger, list[bytes], Any]]:
    """A logger whose lines nobody takes until the event is set; gives what was written."""
    written: list[bytes] = []
    reads = threading.Event()
    begun = threading.Event()

    def write_line(line: bytes) -> None:
        begun.set()
        reads.wait()
        written.append(line)

    monkeypatch.setattr(logs, "write_line", write_line)
    handler = logs._Background(logs._JSONFormatter())
    logger = logging.getLogger("writer")
    logger.propagate = False
    logger.addHandler(handler)
    logger.warning("the first")
    begun.wait()
    yield logger, written, reads
    reads.set()
    logger.removeHandler(handler)
    handler._finish()


@pytest.mark.parametrize(
    ("size", "fits"), [(10, 10_000), (1_000_000, 16)], ids=["in lines", "in bytes"]
)
def test_what_waits_for_the_log_s_reader_is_bounded_in_lines_and_bytes(
    writer: tuple[logging.Logger, list[bytes], threading.Event], size: int, fits: int
) -> None:
    logger, written, reads = writer
    for _ in range(fits + 20):
        logger.warning("x" * size)
    reads.set()
    until(lambda: len(written) > fits, "they are written", 60)
    logger.warning("the last")
    until(lambda: b"the last" in written[-1], "it is written", 60)
    *lines, lost, _ = [json.loads(line)["message"] for line in written]
    assert fits <= len(lines) <= fits + 2
    count, what = lost.split(" ", 1)
    assert what == "log records before this one left out: nobody reads the log fast enough"
    assert len(lines) + int(count) == fits + 21


# Mistakes


@pytest.mark.parametrize(
    ("topic", "content", "right"),
    [
        ("ws.send", "'hello'", 'a payload is {"type": "text", "data": str}'),
        ("ws.close", "{'code': 1006}", "RFC 6455 allows"),
        ("ws.control", "{'target': 'x'}", "target_pid, message_topic"),
        ("ws.sendd", "{'type': 'text', 'data': 'hello'}", "ws.send, ws.close, ws.control"),
    ],
)
def test_what_a_client_cannot_be_told_is_logged_once_with_what_is_right(
    write: Write, topic: str, content: str, right: str
) -> None:
    with Running(write()) as running:
        wrong = f"process.send(message.sender, {topic!r}, {content})"
        do(running, wrong, wrong, "logging.getLogger('last').warning('behind')")
        running.stderr.line("behind")
        [line] = [line for line in running.stderr.lines if f"sent {topic} to" in line]
        assert "WARNING" in line
        assert right in line
        do(running, wrong)
        until(lambda: running.stderr.text.count(f"sent {topic} to") == 2, "another process's")


def test_mistakes_are_told_by_kind_and_in_bounds() -> None:
    mistakes, one, two = MistakeLog(), PID("{local@p|1}"), PID("{local@p|2}")
    assert mistakes.first(one, "code 1005 may not be sent")
    assert not mistakes.first(one, "code 1006 may not be sent")
    assert mistakes.first(two, "code 1006 may not be sent")
    kinds = ["x" * number for number in range(1, 1000)]
    assert sum(mistakes.first(one, kind) for kind in kinds) == 19
    mistakes.forget(one)
    assert mistakes.first(one, "code 1005 may not be sent")


# What happens


def test_debug_shows_spawns_upgrades_transfers_and_closes_and_nothing_for_a_message(
    write: Write,
) -> None:
    transfer = (
        "pid = process.spawn(__file__); "
        "process.send(message.sender, 'ws.control', {'target_pid': pid})"
    )
    with Running(write(), "--log-level", "debug") as running:
        with client(running.ws("/ws?secret=hunter2")) as websocket:
            websocket.send("pass")
            received(websocket)
            log = running.stderr
            one = log.line(" starts: ").partition("{")[2].partition("}")[0]
            log.line(f"{{{one}}} runs, OS pid {running.workers()[0]}")
            who = log.line("/ws: 101: ").partition("101: ")[2]
            log.line(f"{who} joins {{{one}}}")
            before = len(log.lines)
            for _ in range(50):
                websocket.send("pass")
                received(websocket)
            assert len(log.lines) == before
            websocket.send(transfer)
            received(websocket)
            log.line(f"{who} leaves {{{one}}}: 1000 transferred")
            until(lambda: log.text.count(f"{who} joins") == 2, "it joins the other one")
            websocket.close(4001, "enough")
        log.line(f"{who} is closed: 4001 enough")
        assert "hunter2" not in log.text


# Where nobody has set up logging


@contextlib.contextmanager
def nothing_set_up() -> Iterator[logging.Logger]:
    """Be a process in which nobody has set up logging; gives the logger of wsrelay."""
    logger = logging.getLogger("wsrelay")
    before, logging.root.handlers = logging.root.handlers, []
    try:
        yield logger
    finally:
        logging.root.handlers = before
        logger.setLevel(logging.NOTSET)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)


def test_where_nobody_has_set_up_logging_lines_are_written_until_somebody_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("wsrelay.worker")
    seen: list[logging.LogRecord] = []
    theirs = logging.Handler()
    theirs.emit = seen.append  # type: ignore[assignment, method-assign]
    with nothing_set_up() as logger:
        for _ in range(2):
            fallback.log_visibly()
        log.info("first")
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith(" INFO    first")
        logging.root.addHandler(theirs)
        log.warning("second")
        log.info("third")
        assert capsys.readouterr().err == ""
        assert [record.getMessage() for record in seen] == ["second"]
        assert logger.level == logging.NOTSET


def test_a_dictionary_that_disables_all_loggers_does_not_silence_processes(tmp_path: Path) -> None:
    app = """
        import asyncio, logging.config
        from wsrelay import Node
        handlers = {"one": {"class": "logging.StreamHandler"}}
        root = {"handlers": ["one"]}
        logging.config.dictConfig({"version": 1, "handlers": handlers, "root": root})

        def room():
            print("I am here")

        async def main():
            async with Node() as node:
                ended = asyncio.Event()
                node.when_ended(node.spawn(room), lambda result: ended.set())
                await ended.wait()

        asyncio.run(main())
    """
    file = tmp_path / "app.py"
    file.write_text(textwrap.dedent(app))
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=60, check=False
    )
    assert "output: I am here" in done.stderr, done.stderr


def test_where_somebody_has_set_up_wsrelay_s_logger_nothing_is_added() -> None:
    theirs = logging.NullHandler()
    with nothing_set_up() as logger:
        logger.addHandler(theirs)
        fallback.log_visibly()
        assert logger.handlers == [theirs]
        assert logger.level == logging.NOTSET
