from __future__ import annotations

import copy
import json
import pickle
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrelay.errors import InvalidPID
from wsrelay.values.pid import PID, PIDSource, base36

NODES = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9_.:/-]{1,12}", fullmatch=True)
IDS = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)


@settings(deadline=None)
@given(NODES, HOSTS, IDS)
def test_a_pid_gives_its_parts_and_is_its_text(node: str, host: str, id_: str) -> None:
    text = f"{{{node}@{host}|{id_}}}"
    pid = PID(text)
    assert (pid.node, pid.host, pid.id) == (node, host, id_)
    assert pid == text
    assert hash(pid) == hash(text)
    assert {text: 1}[pid] == 1


@settings(deadline=None)
@given(NODES, HOSTS, IDS)
def test_a_pid_without_node_part_means_this_node(node: str, host: str, id_: str) -> None:
    pid = PID(f"{{{host}|{id_}}}")
    assert (pid.node, pid.host, pid.id) == (None, host, id_)
    assert pid.on(node) == PID(f"{{{node}@{host}|{id_}}}")


def test_filling_in_the_node_keeps_a_node_that_is_there() -> None:
    pid = PID("{far@app:processes|k3f9.1f}")
    assert pid.on("local") is pid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{|}",
        "{host|}",
        "{|id}",
        "{@host|id}",
        "{node@|id}",
        "{node@host}",
        "node@host|id",
        "{node@host|id",
        "node@host|id}",
        "{a@b@c|id}",
        "{node@host|id|id}",
        "{node@host|i d}",
        "{node@host|id}\n",
        " {node@host|id}",
        "{nöde@host|id}",
        "{node@host|{id}}",
        "{no:de@host|id}",
    ],
)
def test_bad_text_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidPID, match=re.escape(repr(text))):
        PID(text)


@pytest.mark.parametrize("given_", [None, 1, b"{node@host|id}", ["{node@host|id}"]])
def test_what_is_no_text_is_no_pid(given_: object) -> None:
    with pytest.raises(InvalidPID):
        PID(given_)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_pid_whose_parts_make_it_up_or_is_refused(text: str) -> None:
    try:
        pid = PID(text)
    except InvalidPID:
        return
    node = f"{pid.node}@" if pid.node is not None else ""
    assert text == f"{{{node}{pid.host}|{pid.id}}}"


def test_a_pid_goes_into_json_as_its_text() -> None:
    assert json.loads(json.dumps(PID("{host|id}"))) == "{host|id}"


def test_a_pid_survives_pickling_and_copying_as_a_pid() -> None:
    pid = PID("{node@host|id}")
    for twin in (pickle.loads(pickle.dumps(pid)), copy.deepcopy(pid)):  # noqa: S301 - our own bytes
        assert twin == pid
        assert isinstance(twin, PID)


def test_a_source_never_makes_a_pid_twice_also_from_many_threads() -> None:
    source = PIDSource("local", "k3f9.1")
    made: list[PID] = []

    def mint() -> None:
        made.extend(source.next("app:processes") for _ in range(500))

    threads = [threading.Thread(target=mint) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000


@settings(deadline=None)
@given(NODES, HOSTS, IDS)
def test_what_a_source_makes_is_a_pid_that_it_knows_again(
    node: str, host: str, prefix: str
) -> None:
    source = PIDSource(node, prefix)
    for _ in range(40):
        pid = source.next(host)
        assert PID(pid).host == host
        assert source.made(pid)


def test_a_source_disowns_what_others_made() -> None:
    source = PIDSource("local", "k3f9.1")
    assert not source.made(PIDSource("local", "k3f9.11").next("host"))
    assert not source.made(PIDSource("local", "k3f9").next("host"))
    assert not source.made(PIDSource("other", "k3f9.1").next("host"))
    assert not source.made(PID("{host|k3f9.1-1}"))
    assert not source.made(PID("{local@host|k3f9.1}"))


def test_the_random_part_has_one_length_and_is_drawn_anew() -> None:
    drawn = {PIDSource.draw() for _ in range(100)}
    assert len(drawn) == 100
    assert {len(text) for text in drawn} == {8}


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**80))
def test_base36_is_what_int_reads_back(number: int) -> None:
    assert int(base36(number), 36) == number
    assert base36(number) == base36(number).lower()
    assert not base36(number).startswith("0") or number == 0
