"""What the pages quote of what users see is what the code says, and what a client does then."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path
from typing import Final

import pytest
from pages import DOCS

import wsrelay
from wsrelay.session import ends
from wsrelay.values.message import ExitError, ExitKind, Result

PACKAGE: Final = Path(wsrelay.__file__).parent
CODE_SPAN: Final = re.compile(r"(`+)(.+?)\1(?!`)")

Row = dict[str, str]


def _rows(page: str, *columns: str) -> list[Row]:
    """The rows of all tables of a page that have these columns."""
    found, names = [], list[str]()
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            names = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not names:
            names = cells
        elif set(columns) <= set(names) and not cells[0].startswith("---"):
            assert len(cells) == len(names), line
            found.append(dict(zip(names, cells, strict=True)))
    assert found
    return found


# What the code says

GAP: Final = "\0"
"""Stands for what is put in."""


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-\d.]*[dgrsfx]", GAP, node.value).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = (_text(node.left), _text(node.right))
        return None if parts == (None, None) else "".join(part or GAP for part in parts)
    return None


@functools.cache
def _code() -> list[ast.AST]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]


def _said() -> list[str]:
    """All texts of the code but docstrings."""
    docs = {id(node.value) for node in _code() if isinstance(node, ast.Expr)}
    return [text for node in _code() if id(node) not in docs and (text := _text(node))]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return _said()


def _says(said: list[str], quoted: str) -> bool:
    """Whether one text of the code has what was quoted, with anything for each `...`."""
    parts = [part for part in quoted.split("...") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in said)


# Troubleshooting


def test_each_text_of_the_page_on_messages_is_one_of_the_code(said: list[str]) -> None:
    quoted = [
        text.strip("`")
        for row in _rows("troubleshooting.md", "text")
        for _, text in CODE_SPAN.findall(row["text"])
    ]
    assert [text for text in quoted if not _says(said, text)] == []


def test_a_text_that_the_code_does_not_say_is_found(said: list[str]) -> None:
    assert _says(said, "process host ... is full: ... of ... processes run")
    assert not _says(said, "process host ... is full: ... of ... rooms run")


def test_the_errors_on_that_page_are_wsrelay_s_or_python_s() -> None:
    names = {
        name
        for row in _rows("troubleshooting.md", "text", "error")
        for name in re.findall(r"`([A-Z]\w+)`", row["error"])
    }
    builtin = {"EOFError", "RuntimeError", "TimeoutError", "TypeError"}
    assert names - builtin <= set(wsrelay.__all__)


# Close codes


def _closes() -> list[tuple[int, str, str]]:
    """The code, reason and what comes back of each row; an empty reason where any is possible."""
    closes = []
    for row in _rows("close-codes.md", "code and reason", "comes back"):
        code = re.match(r"(\d{4}) ?", row["code and reason"])
        assert code is not None
        reason = CODE_SPAN.match(row["code and reason"], code.end())
        closes.append((int(code[1]), reason[2] if reason else "", row["comes back"]))
    return closes


def _has_row(code: int, reason: str) -> bool:
    return any((code, reason) == (one, text) for one, text, _ in _closes())


def _close_frames() -> set[tuple[int, str]]:
    """Codes and reasons that stand beside each other in a tuple or as arguments."""
    found = set()
    for node in _code():
        beside = node.args if isinstance(node, ast.Call) else getattr(node, "elts", [])
        for code, reason in itertools.pairwise(beside):
            number = code.value if isinstance(code, ast.Constant) else None
            if isinstance(number, int) and number in range(1008, 1016) and _text(reason):
                found.add((number, (_text(reason) or "").replace(GAP, "...")))
    return found


def test_every_close_frame_of_the_code_has_a_row() -> None:
    frames = _close_frames()
    assert (1013, "slow client") in frames
    made_by_close_for = {(1011, "target process ...")}
    assert {one for one in frames - made_by_close_for if not _has_row(*one)} == set()


NO_ENDS_OF_TARGETS: Final = {
    ExitKind.NOPROC,  # it has never lived
    ExitKind.HOST_FULL,
    ExitKind.DISCONNECTED,  # a connection's
    ExitKind.NO_REPLY,  # a call's
}


@pytest.mark.parametrize("kind", [kind for kind in ExitKind if kind not in NO_ENDS_OF_TARGETS])
@pytest.mark.parametrize("traceback", [None, "Traceback"])
def test_every_end_of_a_process_has_a_row(kind: ExitKind, traceback: str | None) -> None:
    message = {
        ExitKind.KILLED: "...",
        ExitKind.LIMIT: "memory limit of 8 MB reached",
    }.get(kind, "")
    error = ExitError(kind, message, traceback)
    code, reason = ends.close_for(Result(None, error), join_read=True)
    if kind in (ExitKind.TERMINATED, ExitKind.CANCELLED):
        reason = reason.replace("SIGKILL", "...")
    assert _has_row(code, reason), reason


def test_a_process_that_returns_has_a_row() -> None:
    for join_read in (True, False):
        assert _has_row(*ends.close_for(Result(None), join_read=join_read))


def test_each_reason_on_the_page_is_one_of_the_code(said: list[str]) -> None:
    reasons = {reason.partition(" (")[0] for _, reason, _ in _closes() if reason}
    built = {
        f"target process {how}" for how in ("crashed", "killed", "failed to start")
    }  # from two texts
    assert {reason for reason in reasons - built if not _says(said, reason)} == set()
    for how in ("crashed", "killed (...)", "failed to start"):
        assert _says(said, how)


def test_what_comes_back_on_the_page_is_what_wsrelay_js_does() -> None:
    script = (PACKAGE / "relay" / "wsrelay.js").read_text(encoding="utf-8")
    [at_once] = re.findall(r"const atOnce = .*\((.*)\);", script)
    [never] = re.findall(r"return !\((.*)\);", script)
    soon = set(map(int, re.findall(r"code === (\d+)", at_once)))
    final = set(map(int, re.findall(r"code === (\d+)", never)))
    [(least, most)] = re.findall(r"code >= (\d+) && code <= (\d+)", never)
    final |= set(range(int(least), int(most) + 1))
    for code, reason, comes_back in _closes():
        right = "no" if code in final else "at once" if code in soon else "later"
        assert comes_back == right, (code, reason)


# Figures


def test_the_figures_of_the_comparison_are_those_of_the_page_on_performance() -> None:
    figure = re.compile(r"\b(?:\d+(?:[.,]\d+)+|\d{3})\b")
    here, there = (
        set(figure.findall((DOCS / name).read_text(encoding="utf-8")))
        for name in ("comparison.md", "performance.md")
    )
    assert {"7.97", "9.11", "2.4"} <= here
    assert here - there == set()
