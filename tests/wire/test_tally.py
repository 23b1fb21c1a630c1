"""The memory in which workers note what they have taken."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest

from wsrelay.wire.tally import TAKEN, TOOK, TallySheet


@contextlib.contextmanager
def made(workers: int) -> Iterator[TallySheet]:
    with contextlib.closing(TallySheet.make(workers)) as sheet:
        yield sheet


def test_what_is_noted_in_a_line_is_seen_by_all_that_have_the_memory_and_in_no_other_line() -> None:
    with (
        made(3) as ours,
        contextlib.closing(TallySheet(os.dup(ours.fileno()), ours.lines)) as theirs,
    ):
        for number in range(3):
            theirs.line(number)[TAKEN] = number + 1
            theirs.line(number)[TOOK] = -number
        assert [[*ours.line(number)] for number in range(3)] == [[1, 0, 0], [2, -1, 0], [3, -2, 0]]


def test_a_line_outlives_its_sheet() -> None:
    with made(1) as sheet:
        line = sheet.line(0)
    line[TAKEN] += 1
    assert [*line] == [1, 0, 0]
    sheet.close()


def test_there_are_no_more_lines_than_fit() -> None:
    with made(10**9) as sheet:
        assert sheet.lines < 10**6
        sheet.line(sheet.lines - 1)[TAKEN] = 1


def test_a_stack_is_what_was_written_since_it_was_cleared_and_no_line() -> None:
    with made(1) as sheet:
        sheet.clear_stack()
        os.write(sheet.fileno(), b"one ")
        os.write(sheet.fileno(), b"two")
        assert sheet.stack() == b"one two"
        sheet.clear_stack()
        assert sheet.stack() == b""
        os.write(sheet.fileno(), b"three")
        assert sheet.stack() == b"three"
        assert [*sheet.line(0)] == [0, 0, 0]


@pytest.mark.parametrize("where", [0, 1, 1 << 40])
def test_a_worker_may_put_the_end_of_a_stack_anywhere(where: int) -> None:
    with made(1) as sheet:
        os.lseek(sheet.fileno(), where, os.SEEK_SET)
        assert len(sheet.stack()) <= 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has seals")
def test_nobody_can_change_its_size() -> None:
    with made(1) as sheet:
        size = os.fstat(sheet.fileno()).st_size
        for other in (0, size - 1, size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(sheet.fileno(), other)
        os.lseek(sheet.fileno(), size, os.SEEK_SET)
        with pytest.raises(PermissionError):
            os.write(sheet.fileno(), b"x")
