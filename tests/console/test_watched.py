"""What is known of one process from one look to the next."""

from __future__ import annotations

from made_up import process_info, watched

from wsrelay.control.usage import UsageSample

MB = 1024 * 1024


def test_the_rate_is_what_was_received_and_sent_since_the_last_look() -> None:
    process, rates = watched(received=10, sent=20), []
    for now, received in ((2.0, 30), (3.0, 30)):
        process.update(process_info(received=received, sent=40), now)
        rates.append(process.rate)
    assert rates == [20.0, 0.0]


def test_the_rate_is_unknown_where_the_node_does_not_count() -> None:
    process = watched()
    process.update(process_info(), 1.0)
    assert process.rate is None


def test_growth_counts_from_the_least_of_the_last_minute() -> None:
    process = watched()
    assert process.growth(0.0) is None
    for now, memory in ((0.0, 50), (5.0, 30), (10.0, 30), (15.0, 40)):
        process.use(UsageSample(0.0, memory * MB), now)
    assert process.growth(15.0) == (10 * MB, 5.0)
    for step in range(4, 18):
        process.use(UsageSample(0.0, 100 * MB), step * 5.0)
    assert process.growth(85.0) == (0, 0.0)


def test_a_process_is_called_by_its_name_or_else_by_its_target() -> None:
    assert watched(names=["room:blue", "other"]).name == "room:blue"
    assert watched(names=[]).name == "rooms.py:room"
