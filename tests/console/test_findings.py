"""What needs attention, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import connected, connection_info, end_info, known_node, process_info, watched

from wsrelay.console.findings import Finding, findings
from wsrelay.console.watched import WatchedProcess
from wsrelay.console.watched_node import WatchedNode
from wsrelay.control.usage import UsageSample

MB = 1024 * 1024


def found(*nodes: WatchedNode, now: float = 100.0, clock: float = 1000.0) -> list[Finding]:
    return findings(nodes, now, clock)


def told(*nodes: WatchedNode, now: float = 100.0, clock: float = 1000.0) -> list[str]:
    return [f"{one.name} {one.text}" for one in found(*nodes, now=now, clock=clock)]


def used(process: WatchedProcess, *samples: tuple[float, UsageSample]) -> WatchedProcess:
    for now, sample in samples:
        process.use(sample, now)
    return process


def test_where_all_is_well_there_is_nothing_to_tell() -> None:
    calm = used(watched(), (90, UsageSample(50.0, 20 * MB)), (99, UsageSample(89.0, 21 * MB)))
    assert told(known_node(calm, connections=(connected(),)), known_node()) == []


def test_a_process_that_burns_a_core_is_told_after_three_seconds() -> None:
    busy = used(watched(), (97.5, UsageSample(99.6, MB)), (98, UsageSample(99.8, MB)))
    assert told(known_node(busy)) == []
    assert told(known_node(busy), now=100.5) == ["room:0 burns 100 % of a core for 3 s"]
    busy.use(UsageSample(3.0, MB), 101)
    assert told(known_node(busy), now=200) == []


def test_a_process_that_never_waits_is_told_however_little_it_gets() -> None:
    endless = used(watched(), (90, UsageSample(24.0, MB, waits=False)))
    text = "room:0 burns 24 % of a core, all that is left for it, for 10 s"
    assert told(known_node(endless)) == [text]


def test_a_process_that_grows_within_a_minute_is_told() -> None:
    samples = [(float(at), UsageSample(0.0, (20 + at) * MB)) for at in range(0, 100, 5)]
    leaking = used(watched(), *samples)
    assert told(known_node(leaking)) == ["room:0 memory grew by 60.0 MB in a minute"]
    leaking.use(UsageSample(0.0, 60 * MB), 100)
    assert told(known_node(leaking)) == [], "it has given most of it back"


def test_what_a_process_takes_to_begin_with_is_no_growth() -> None:
    young = watched(uptime=0.0, now=90.0)
    used(young, (90, UsageSample(0.0, 2 * MB)), (94, UsageSample(0.0, 200 * MB)))
    assert told(known_node(young)) == []
    used(young, (99, UsageSample(0.0, 240 * MB)))
    assert told(known_node(young)) == ["room:0 memory grew by 40.0 MB in 6 s"]


def test_an_older_node_shows_by_the_mailbox_that_no_messages_are_taken() -> None:
    stuck = watched(mailbox=2048, now=90.0)
    assert told(known_node(stuck)) == ["room:0 has taken no message for 10 s, 2.0 KB wait"]
    stuck.update(process_info(mailbox=0), 95.0)
    stuck.update(process_info(mailbox=4096), 96.0)
    assert told(known_node(stuck)) == []


@pytest.mark.parametrize(
    ("since", "values", "text", "level"),
    [
        (
            88.0,
            {"idle": 12.0, "waiting": 3},
            "has taken no message for 12 s, 3 messages wait",
            "warn",
        ),
        (
            88.0,
            {"idle": None, "waiting": 1},
            "has taken no message for 12 s, 1 message waits",
            "warn",
        ),
        (93.0, {"idle": 3600.0, "waiting": 1}, "has taken no message for 1 h", "warn"),
        (99.0, {"idle": 3600.0, "waiting": 1}, "", ""),
        (88.0, {"idle": 1.0, "waiting": 7}, "", ""),
        (88.0, {"idle": 12.0, "waiting": 0}, "", ""),
        (
            99.0,
            {"idle": 60.0, "waiting": 1, "stalled": True},
            "has taken no message for 1 min",
            "bad",
        ),
    ],
)
def test_a_node_that_knows_it_says_how_long_no_messages_are_taken(
    since: float, values: dict[str, Any], text: str, level: str
) -> None:
    stuck = watched(mailbox=64, now=since, **values)
    stuck.update(process_info(mailbox=64, **values), 100.0)
    one = found(known_node(stuck))
    assert [each.level for each in one] == ([level] if level else [])
    assert all(each.text.startswith(text) for each in one)


def test_who_was_seen_to_fall_behind_has_taken_no_message_since_then() -> None:
    quiet = watched(now=80.0, idle=3580.0, waiting=0)
    quiet.update(process_info(idle=3593.0, waiting=1), 93.0)
    assert told(known_node(quiet)) == ["room:0 has taken no message for 7 s, 1 message waits"]


def test_a_client_that_does_not_read_is_told_with_its_process() -> None:
    room = watched()
    slow = connected(outbox=3 * MB, user="ann", now=95.0)
    [one] = found(known_node(room, connections=(slow,)))
    assert one.text == "its client ann does not read: 3.0 MB wait for 5 s"
    assert (one.page, one.of, one.name) == ("process", room.pid, "room:0")
    slow.update(connection_info(outbox=0), 99.0)
    assert told(known_node(room, connections=(slow,))) == []


def test_crashes_are_told_by_name_for_ten_minutes_and_orderly_ends_are_not() -> None:
    node = known_node()
    node.ends["process"].extend(
        [
            end_info(1, ended=300.0),
            end_info(2, ended=900.0),
            end_info(3, ended=988.0),
            end_info(4, names=["room:odd"], ended=999.0, how="signal", kind="killed", message=""),
            end_info(11, names=["room:fine"], ended=999.0, how="node", kind="terminated"),
            end_info(12, names=["room:fine"], ended=999.0, how="node", kind="returned"),
            end_info(13, names=["room:fine"], ended=999.0, how="empty", kind="cancelled"),
            end_info(14, names=["room:fine"], ended=999.0, how="shutdown", kind="killed"),
            end_info(15, names=["room:fine"], ended=999.0, how="link", kind="link_down"),
        ]
    )
    crashing, once = found(node)
    assert crashing.text == "crashed 2 times lately, last 12 s ago (error: 17 != 42)"
    assert (crashing.page, crashing.of, crashing.level) == ("ends", "room:ledger", "warn")
    assert (once.name, once.text, once.level) == (
        "room:odd",
        "crashed once, last 1 s ago (killed)",
        "note",
    )


def test_nodes_that_are_away_come_first_and_their_processes_are_not_told() -> None:
    busy = used(watched(), (1, UsageSample(99.0, MB)))
    gone, full = known_node(busy), known_node(used(watched(1), (1, UsageSample(99.0, MB))))
    gone.state, gone.problem, gone.since = "gone", "it has ended", 90.0
    full.info["hosts"] = [{"name": "games", "os_pid": 1, "processes": 95, "max_processes": 100}]
    full.members = [{"name": "b", "state": "dead"}, {"name": "c", "state": "up"}]
    assert told(gone, full) == [
        "local gone for 10 s: it has ended",
        "local node b of its cluster is dead",
        "room:1 burns 99 % of a core for 2 min",
        "local host games runs 95 of at most 100 processes",
    ]
