from __future__ import annotations

import itertools
import math

import pytest

from wsrelay.cluster.lease import (
    Floor,
    Hold,
    Lease,
    LeaseRecord,
    LeaseState,
    LeaseStep,
    key_of_node,
    misfit,
)
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Entry
from wsrelay.errors import WireError

ME = Peer("a", "one")
KEY = key_of_node("a")
ALIVE = LeaseRecord("one", LeaseState.ALIVE, 6.0)


def a_lease() -> Lease:
    return Lease(ME, 6.0, 100.0, 7)


def entry(record: LeaseRecord, revision: int) -> Entry:
    return Entry(KEY, record.encode(), revision)


def test_deadlines_count_from_before_the_issue_of_the_last_renewal_that_succeeded() -> None:
    lease = a_lease()
    lease.issued(101.0, 7)
    lease.renewed(101.8, 8)
    assert (lease.claims_until, lease.runs_until) == (104.0, 105.0)
    holds = [lease.hold(now) for now in (101.8, 103.9, 104.0, 104.9, 105.0, 200.0)]
    assert holds == [
        Hold.HOLDING,
        Hold.HOLDING,
        Hold.NO_NEW_NAMES,
        Hold.NO_NEW_NAMES,
        Hold.FROZEN,
        Hold.FROZEN,
    ]
    assert [lease.may_claim(now) for now in (103.9, 104.0)] == [True, False]
    assert [lease.changes_at(now) for now in (101.8, 104.0, 105.0)] == [104.0, 105.0, math.inf]


def test_what_is_written_of_a_lease_has_the_floor_that_its_writer_knows_or_writes_over() -> None:
    floor = Floor()
    lease = Lease(ME, 6.0, 100.0, 7, floor)
    floor.learn(50)
    floor.learn(40)
    assert lease.issued(101.0, 7).floor == 50
    assert lease.record(LeaseState.GONE).floor == 50
    record = LeaseRecord("one", LeaseState.ALIVE, 6.0, floor=60)
    assert [record.declared_dead("b", known).floor for known in (50, 70)] == [60, 70]
    with pytest.raises(WireError):
        LeaseRecord.of(entry(LeaseRecord("one", LeaseState.ALIVE, 6.0, floor=2**62), 9))


def test_a_lease_is_renewed_each_sixth_of_it_counted_from_the_issue() -> None:
    lease = a_lease()
    assert (lease.step, lease.due) == (LeaseStep.RENEW, 101.0)
    record = lease.issued(101.2, 9)
    assert record == LeaseRecord("one", LeaseState.ALIVE, 6.0, seen=9)
    lease.renewed(101.3, 10)
    assert (lease.step, lease.due, lease.revision) == (LeaseStep.RENEW, 102.2, 10)
    lease.issued(102.2, 10)
    lease.renewed(105.0, 11)
    assert lease.due == 105.0


def test_an_answer_that_comes_after_its_own_deadline_thaws_nobody() -> None:
    lease = a_lease()
    lease.issued(101.0, 7)
    assert lease.hold(105.5) is Hold.FROZEN
    lease.renewed(105.5, 8)
    assert lease.hold(105.5) is Hold.FROZEN
    lease.issued(105.5, 8)
    lease.renewed(105.6, 9)
    assert lease.hold(105.6) is Hold.HOLDING


def test_a_renewal_that_failed_is_read_back_and_its_revision_adopted_without_more_time() -> None:
    lease = a_lease()
    lease.issued(101.0, 7)
    lease.refused(102.0)
    assert (lease.step, lease.due) == (LeaseStep.READ_BACK, 102.0)
    lease.unread(103.0)
    assert (lease.step, lease.due) == (LeaseStep.READ_BACK, 103.1)
    assert not lease.read(103.2, entry(ALIVE, 8))
    assert (lease.step, lease.due, lease.revision) == (LeaseStep.RENEW, 103.2, 8)
    assert lease.since == 100.0
    assert lease.hold(104.0) is Hold.FROZEN


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (entry(ALIVE.declared_dead("b"), 9), "b has declared it dead"),
        (
            entry(LeaseRecord("two", LeaseState.ALIVE, 6.0), 9),
            "another incarnation (two) has its name",
        ),
        (entry(LeaseRecord("one", LeaseState.GONE, 6.0), 9), "it has left"),
        (None, "its key is gone"),
    ],
)
def test_what_the_key_says_is_the_only_death(found: Entry | None, why: str) -> None:
    lease = a_lease()
    lease.issued(101.0, 7)
    lease.refused(101.1)
    lease.read(101.2, found)
    assert (lease.step, lease.why) == (LeaseStep.END, why)
    assert lease.hold(101.2) is Hold.DEAD
    assert not lease.may_claim(101.2)


def test_a_key_that_no_node_has_written_is_the_death_of_its_owner() -> None:
    lease = a_lease()
    lease.read(101.2, Entry(KEY, b"what", 9))
    assert lease.hold(101.2) is Hold.DEAD
    assert "the key lease.a of the cluster's bucket holds no lease" in lease.why


def test_a_revision_below_one_that_was_seen_means_no_claims_for_one_lease() -> None:
    lease = a_lease()
    assert lease.issued(101.0, 20).seen == 20
    assert lease.renewed(101.1, 20)
    assert lease.hold(101.1) is Hold.HOLDING
    assert [lease.may_claim(now) for now in (101.1, 103.9)] == [False, False]
    # Revisions grow from there again: what lay above is not held against them.
    assert lease.issued(102.0, 20).seen == 20
    assert not lease.renewed(102.1, 21)
    for now in (103.0, 104.0, 105.0, 106.0, 107.0):
        lease.issued(now, 20)
        assert not lease.renewed(now + 0.1, lease.revision + 1)
    assert [lease.may_claim(now) for now in (107.0, 107.1)] == [False, True]


def test_an_own_key_that_went_back_means_that_the_store_lost_writes() -> None:
    lease = a_lease()
    lease.issued(101.0, 7)
    lease.refused(101.1)
    assert lease.read(101.2, entry(ALIVE, 5))
    assert lease.revision == 5
    assert not lease.may_claim(101.2)
    assert lease.changes_at(101.2) == 103.0
    assert lease.issued(101.2, 7).seen == 5
    assert not lease.renewed(101.3, 6)


def test_a_loss_of_writes_is_news_once() -> None:
    lease = a_lease()
    assert lease.writes_lost(101.0, 50)
    assert not lease.writes_lost(102.0, 50)
    assert not lease.writes_lost(103.0, 40)
    assert lease.writes_lost(104.0, 60)
    assert lease.writes_lost(110.0, 60)


def test_a_record_is_json_that_can_be_read_back() -> None:
    record = LeaseRecord("one", LeaseState.ALIVE, 6.0, seen=3)
    assert record.encode() == b'{"incarnation":"one","state":"alive","lease":6.0,"seen":3}'
    assert LeaseRecord.of(entry(record, 4)) == record
    for garbage in (b"", b"\xff", b"{}", b'{"incarnation":"","state":"alive","lease":6}'):
        with pytest.raises(WireError, match="delete the key"):
            LeaseRecord.of(Entry(KEY, garbage, 1))


def test_nodes_of_one_cluster_have_one_lease_and_one_protocol() -> None:
    assert not misfit(ALIVE, 6.0)
    assert misfit(ALIVE, 9.0) == "a lease of 6 s, here 9 s"
    other = LeaseRecord("one", LeaseState.ALIVE, 6.0, protocol=99)
    assert misfit(other, 6.0).startswith("version 99 of the protocol between nodes, here ")


# What becomes of a renewal: is it carried out, is it answered, and after how long.
OUTCOMES = [
    (True, True, 0.1),
    (True, True, 4.5),
    (True, False, 1.0),
    (False, False, 1.0),
    (False, False, 3.1),
]


class FromTheAnswer(Lease):
    """What a lease must not be: its deadlines count from the answer."""

    def renewed(self, now: float, revision: int) -> bool:
        self._issued = now
        return super().renewed(now, revision)


class FromTheReading(Lease):
    """What a lease must not be: a reading moves its deadline."""

    def read(self, now: float, entry: Entry | None, seen: int = 0) -> bool:
        self.since = now
        return super().read(now, entry, seen)


def faults(kind: type[Lease]) -> int:
    """Run all schedules of five renewals; count those that ran on too long, or were held dead."""
    count = 0
    for schedule in itertools.product(OUTCOMES, repeat=5):
        now, revision, written = 100.0, 7, 100.0
        lease = kind(ME, 6.0, now, revision)
        is_wrong = False
        for carried_out, answered, delay in schedule:
            now = max(now, lease.due)
            assert lease.step is LeaseStep.RENEW
            lease.issued(now, revision)
            if carried_out:
                # An observer may have seen it as soon as it was issued, and then wait for a lease.
                revision, written = revision + 1, now
            now += delay
            if answered:
                lease.renewed(now, revision)
            else:
                lease.refused(now)
                lease.read(now, entry(ALIVE, revision))
            is_wrong |= lease.runs_until > written + 6.0 - 2.0
            is_wrong |= lease.hold(now) is Hold.DEAD or lease.revision != revision
        count += is_wrong
    return count


def test_no_schedule_of_renewals_lets_a_node_run_when_others_may_hold_it_dead() -> None:
    assert faults(Lease) == 0
    assert faults(FromTheAnswer) > 1_000
    assert faults(FromTheReading) > 1_000
