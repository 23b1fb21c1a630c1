"""A worker's life, from the fork to its last frame."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any, Never

from setproctitle import setproctitle

from wsrelay import tracing, wire
from wsrelay.errors import PayloadError, WireError
from wsrelay.values import current, linux, sizes
from wsrelay.values.message import ExitKind
from wsrelay.values.trace_context import split
from wsrelay.wire import payload
from wsrelay.wire.code import unpack_target
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.wire.tally import TallySheet

from . import forks, generators, logs, signals
from .call import HandlerCall
from .calls import WorkerContext
from .load import LoadError, load_target, user_frames, user_traceback
from .pipe import WorkerPipe

__all__ = ["Given", "run"]

logger = logging.getLogger(__name__)

_RESERVE = 256 * 1024
"""Bytes released when memory runs out, so that the end can be reported; no page is ever touched."""

_SIGNALS = signal.valid_signals()

_LONGEST = 64 * 1024
"""Characters of a traceback, and of an error's line; an infinite recursion has 80,000."""

_NOTHING = payload.encode(None)

Given = tuple[Duplex, int | None]
"""The pipe to the node, and the number of the worker's line on its host's sheet, if it has one."""


def run(
    wait: Callable[[], Given],
    template: int,
    confine: Callable[[], None],
    handlers: dict[int, signals.Handler],
    sheet: TallySheet,
) -> Never:
    """Run a worker: `wait` returns what the node gives it, `template` is the parent's process id.

    `confine` applies the limits of its host, `handlers` are its signal handlers.

    Never returns, so that nothing that belongs to the template (exit handlers, threads) runs here.
    """
    code = 1
    try:
        _enter(template, handlers)
        ends, line = wait()
        ends.redirect_output()
        pipe = WorkerPipe(ends)
        pipe.stacks = sheet.fileno()
        if line is not None:
            pipe.note_in(sheet.line(line))
        code = _live(pipe, confine)
    except (EOFError, OSError) as error:  # the node is gone, so there is nothing to report to
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            code = wire.PIPE_CLOSED  # or it is not, and the handler has closed the pipe to it
    except BaseException:  # noqa: BLE001 - a bug in wsrelay; nothing above would show it
        traceback.print_exc()
    finally:
        forks.leave(code)


def _enter(template: int, handlers: dict[int, signals.Handler]) -> None:
    os.setsid()
    linux.die_with_parent(template)
    signals.inherit(handlers)
    generators.renew()


def _begin(pipe: WorkerPipe) -> tuple[wire.StartFrame, WorkerContext]:
    """Wait for the first frame; frames that arrive together with it go into the mailbox."""
    frames: list[tuple[wire.ToWorker, int]] = []
    while not frames:
        frames = pipe.read(None)
    start, _ = frames[0]
    if not isinstance(start, wire.StartFrame):
        raise WireError(f"{type(start).__name__} came before {wire.StartFrame.__name__}")
    context = WorkerContext(pipe, start)
    context.mailbox.sort(frames[1:])
    return start, context


def _live(pipe: WorkerPipe, confine: Callable[[], None]) -> int:
    start, context = _begin(pipe)
    setproctitle(start.title)
    current.enter_worker(context)
    logs.log_to(logs.NodeLog(pipe.write, start.log_level))
    signals.install(
        signal.SIGTERM,
        lambda *_: pipe.post(wire.CancelFrame(start.pid, "SIGTERM")),
    )
    call = HandlerCall(pipe.attach)
    signals.install(wire.INTERRUPT, call.interrupt)
    value, error, code = _NOTHING, None, 0
    trace, order = split(start.code)
    reserve = mmap.mmap(-1, _RESERVE)
    try:
        with forks.ChildBoundary():
            confine()
            function, args, kwargs = unpack_target(
                start.target, order, load_target, plain=start.plain
            )
    except LoadError as problem:
        error = _error(ExitKind.START_FAILED, problem.message, problem.details or None)
    except Exception as problem:  # noqa: BLE001 - whatever the user's pickles raise
        reserve.close()
        error = _failure(problem, ExitKind.START_FAILED)
    else:
        pipe.write(wire.ReadyFrame())
        tracing.begin(trace)
        try:
            try:
                value = _data(call(function, args, kwargs))
            finally:  # what signal handlers raise ends the handler; afterwards none may run
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        except SystemExit as leaving:
            code = forks.exit_code(leaving)
            if code:
                error = _error(ExitKind.EXIT, f"exit code {code}")
        except BaseException as problem:  # noqa: BLE001 - the handler's, whatever it is
            reserve.close()
            error = _failure(problem, ExitKind.ERROR)
            logs.crashed(problem.with_traceback(user_frames(problem)))
    forks.remove_sockets()
    mailbox = context.mailbox
    mailbox.read_the_rest()
    done = wire.DoneFrame(value, error, pipe.received, sorted(mailbox.unread))
    try:
        pipe.write(done)
    except PayloadError as problem:
        logger.warning("the handler's return value is dropped: %s", problem)
        done.value = _NOTHING
        pipe.write(done)
    logs.flush()
    return code or (1 if error else 0)


def _error(kind: ExitKind, line: str, trace: str | None = None) -> wire.WorkerError:
    """Make an error from texts of any length."""
    return wire.WorkerError(kind, _cut(line), trace and _cut(trace))


def _failure(error: BaseException, kind: ExitKind) -> wire.WorkerError:
    """Make the error for what was raised, distinguishing a memory limit that was reached."""
    text = user_traceback(error)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if isinstance(error, MemoryError) and limit != resource.RLIM_INFINITY:
        traceback.clear_frames(error.__traceback__)  # releases what filled the memory
        return _error(ExitKind.LIMIT, f"memory limit of {sizes.show(limit)} reached", text)
    return _error(kind, _line(error), text)


def _data(result: Any) -> bytes:
    try:
        return payload.encode(result)
    except PayloadError as error:
        logger.warning("the handler's return value is dropped: %s", error)
        return _NOTHING


def _line(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}... ({len(text)} characters) ...{text[-half:]}"
