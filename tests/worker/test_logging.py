"""What a script sets up of logging, and what an error tracker in it hears."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import textwrap
import threading
from pathlib import Path

import pytest
from logged import Write, crash, do, scripted
from running import Running, client, closed, until


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return functools.partial(scripted, tmp_path / "script.py")


# What the user has set up

FILE = "logging.FileHandler('app.log')"
LINES = "log = logging.getLogger('mine'); log.debug('in detail'); log.warning('with care')"
BY_DICT = """
    {"version": 1, "handlers": {"f": {"class": "logging.FileHandler", "filename": "app.log"}},
     "root": {"level": "DEBUG", "handlers": ["f"]}}
"""


@pytest.mark.parametrize("place", ["at the top", "in the handler"])
@pytest.mark.parametrize(
    "set_up",
    [
        "logging.basicConfig(filename='app.log', level=logging.DEBUG)",
        f"logging.basicConfig(handlers=[{FILE}], level=0, force=True)",
        f"logging.config.dictConfig({textwrap.dedent(BY_DICT).strip()})",
        f"logging.getLogger('mine').addHandler({FILE}); logging.getLogger('mine').setLevel(10)",
        f"logging.root.handlers = [{FILE}]; logging.root.setLevel(0)",
    ],
    ids=["basicConfig", "by force", "dictConfig", "a logger", "root.handlers"],
)
def test_logging_that_a_script_sets_up_works_and_the_node_gets_each_record_once(
    write: Write, tmp_path: Path, set_up: str, place: str
) -> None:
    top = set_up if place == "at the top" else ""
    with Running(write(top), cwd=tmp_path) as running:
        do(running, *([set_up] if not top else []), LINES)
        line = running.stderr.line("with care")
        assert "WARNING {local@processes|" in line
        assert "mine: with care" in line
        assert running.stderr.text.count("with care") == 1
        assert "in detail" not in running.stderr.text, "the node logs from INFO on"
        written = (tmp_path / "app.log").read_text()
    assert (written.count("in detail"), written.count("with care")) == (1, 1)


MINE = "log = logging.getLogger('mine'); log.addHandler(logging.StreamHandler())"


@pytest.mark.parametrize(
    "order",
    [
        "logging.warning('with care')",  # which calls basicConfig
        "logging.basicConfig(format='mine %(message)s'); logging.warning('with care')",
        f"{MINE}; log.warning('with care')",
        f"{MINE}; log.propagate = False; log.warning('with care')",
    ],
)
def test_a_handler_of_standard_error_gives_way_to_the_node_s_line(write: Write, order: str) -> None:
    with Running(write()) as running:
        do(running, order, "logging.getLogger('last').warning('behind')")
        running.stderr.line("behind")
        [line] = [line for line in running.stderr.lines if "with care" in line]
        assert "WARNING {local@processes|" in line


def test_a_handler_of_standard_output_is_the_user_s_own(write: Write) -> None:
    top = "logging.basicConfig(stream=sys.stdout, format='mine: %(message)s')"
    with Running(write(top)) as running:
        do(running, "logging.warning('with care')")
        assert "WARNING {local@processes|" in running.stderr.line("root: with care")
        assert "INFO    {local@processes|" in running.stderr.line("output: mine: with care")


def test_a_filter_of_the_handler_that_gives_way_takes_passwords_out_all_the_same(
    write: Write,
) -> None:
    top = """
        def hide(record):
            record.msg = record.msg.replace("hunter2", "***")
            return True
        logging.basicConfig()
        logging.root.handlers[0].addFilter(hide)
    """
    with Running(write(top)) as running:
        do(running, "logging.warning('the password is hunter2')")
        running.stderr.line("the password is ***")
        assert "hunter2" not in running.stderr.text


def test_what_a_logger_does_not_pass_on_stays_with_its_own_handlers(
    write: Write, tmp_path: Path
) -> None:
    top = f"""
        quiet = logging.getLogger("quiet")
        quiet.addHandler({FILE})
        quiet.propagate = False
    """
    with Running(write(top), cwd=tmp_path) as running:
        do(running, "quiet.warning('a secret')", "logging.getLogger('last').warning('behind')")
        running.stderr.line("behind")
        assert "a secret" not in running.stderr.text
    assert "a secret" in (tmp_path / "app.log").read_text()


def test_wsrelay_s_own_warnings_survive_a_dict_config(write: Write, tmp_path: Path) -> None:
    top = """
        logging.config.dictConfig({"version": 1})
        def answers(): return object()
    """
    with Running(write(top), cwd=tmp_path) as running:
        do(running, "process.spawn(f'{__file__}:answers')")
        running.stderr.line("the handler's return value is dropped")


def test_what_a_script_logs_while_it_is_loaded_is_in_the_node_s_log(write: Write) -> None:
    top = "logging.getLogger('model').info('loading %s', 'weights')"
    with Running(write(top), "--log-format", "json") as running:
        record = json.loads(running.stderr.line("loading weights"))
        assert record["logger"] == "model"
        assert record["host"] == "processes"
        assert record["os_pid"] == running.template.pid


def test_a_child_of_a_handler_logs_to_standard_error(write: Write) -> None:
    order = (
        "pid = os.fork()\n"
        "if not pid: logging.getLogger('child').info('from %d', os.getpid()); os._exit(0)\n"
        "os.waitpid(pid, 0)"
    )
    with Running(write()) as running:
        do(running, order)
        assert "INFO    from " in running.stderr.line("from ")


# Crashes

TRACKER = """
    seen = open("seen", "a", buffering=1)

    class Tracker(logging.Handler):
        def emit(self, record):
            if record.exc_info:
                note("record", *record.exc_info)

    def note(how, kind, error, trace):
        names = []
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        print(how, kind.__name__, error, names, file=seen)
"""
HOOK = """
    before = sys.excepthook
    def hook(*exception):
        note("hook", *exception)
        before(*exception)
    sys.excepthook = hook
"""


@pytest.mark.parametrize(
    ("top", "heard"),
    [
        (TRACKER + HOOK, "hook"),
        (TRACKER + "    logging.root.addHandler(Tracker())", "record"),
        (TRACKER + HOOK + "    logging.root.addHandler(Tracker())", "hook"),
    ],
    ids=["a hook", "a handler", "both"],
)
def test_an_error_tracker_hears_of_a_crash_once_and_the_node_logs_its_traceback_once(
    write: Write, tmp_path: Path, top: str, heard: str
) -> None:
    with Running(write(top), cwd=tmp_path) as running:
        crash(running, "1/0")
        running.stderr.line("crashed: ZeroDivisionError")
        running.stderr.line("line 1, in <module>")
        assert running.stderr.text.count("Traceback") == 1
    [line] = (tmp_path / "seen").read_text().splitlines()
    assert line == f"{heard} ZeroDivisionError division by zero ['handler', '<module>']"


class Sentry(http.server.ThreadingHTTPServer):
    """Takes what the Sentry client sends; `events` are the exceptions' types and the messages."""

    def __init__(self) -> None:
        self.events: list[str] = []
        super().__init__(("127.0.0.1", 0), SentryRequest)


class SentryRequest(http.server.BaseHTTPRequestHandler):
    server: Sentry

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        for line in body.splitlines():
            event = json.loads(line)
            for one in event.get("exception", {}).get("values", ()):
                self.server.events.append(one["type"])
            if (entry := event.get("logentry")) is not None:
                self.server.events.append(entry["message"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("order", ["1/0", "logging.error('on the way'); sys.exit()"])
def test_sentry_as_it_is_gets_what_a_handler_ends_with_once(write: Write, order: str) -> None:
    pytest.importorskip("sentry_sdk")
    with Sentry() as sentry:
        thread = threading.Thread(target=sentry.serve_forever)
        thread.start()
        try:
            dsn = f"http://key@127.0.0.1:{sentry.server_address[1]}/1"
            with Running(write(f"import sentry_sdk; sentry_sdk.init({dsn!r})")) as running:
                with client(running.ws()) as websocket:
                    websocket.send(order)
                    assert closed(websocket)[0] in (1000, 1011)
                until(lambda: not running.workers(), "it is gone")
                if order == "1/0":
                    running.stderr.line("crashed: ZeroDivisionError")
                    running.stderr.line("line 1, in <module>")
                    assert running.stderr.text.count("Traceback") == 1
        finally:
            sentry.shutdown()
            thread.join()
    assert sentry.events == ["ZeroDivisionError" if order == "1/0" else "on the way"]


def test_a_hook_that_logs_what_it_is_told_gives_the_node_no_second_traceback(
    write: Write, tmp_path: Path
) -> None:
    top = """
        logging.basicConfig(filename="app.log")
        log = logging.getLogger("hook")
        sys.excepthook = lambda *e: log.critical("it has come to this", exc_info=e)
    """
    with Running(write(top), cwd=tmp_path) as running:
        crash(running, "1/0")
        running.stderr.line("crashed: ZeroDivisionError")
        running.stderr.line("hook: it has come to this")
        assert running.stderr.text.count("Traceback") == 1
    assert (tmp_path / "app.log").read_text().count("Traceback") == 1


def test_a_hook_that_fails_is_told_and_changes_no_end(write: Write) -> None:
    with Running(write("sys.excepthook = lambda *_: [][1]")) as running:
        crash(running, "1/0")
        running.stderr.line("crashed: ZeroDivisionError")
        running.stderr.line("IndexError")


def test_the_hook_of_threads_is_the_user_s(write: Write, tmp_path: Path) -> None:
    top = TRACKER + "    threading.excepthook = lambda a: note('thread', *a[:3])"
    with Running(write(top), cwd=tmp_path) as running:
        do(running, "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()")
    assert "thread ZeroDivisionError" in (tmp_path / "seen").read_text()


def test_sys_excepthook_that_is_called_for_another_error_prints_it(write: Write) -> None:
    with Running(write()) as running:
        do(running, "try: 1/0\nexcept ZeroDivisionError: sys.excepthook(*sys.exc_info())")
        running.stderr.line("ZeroDivisionError: division by zero")
