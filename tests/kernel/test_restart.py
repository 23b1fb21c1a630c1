from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.kernel.restart import RestartPolicy, Restarts

policies = st.builds(
    lambda initial, more, factor, jitter, attempts: RestartPolicy(
        initial_delay=initial,
        max_delay=initial + more,
        backoff_factor=factor,
        jitter=jitter,
        max_attempts=attempts,
    ),
    st.floats(0.01, 100),
    st.floats(0, 1000),
    st.floats(1, 1e300),
    st.floats(0, 0.99),
    st.integers(0, 20),
)


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    restarts = Restarts(RestartPolicy(jitter=0), stable_threshold=5)
    delays = [restarts.failed(0, 0.5) for _ in range(9)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 90, 90]


def test_jitter_moves_a_delay_by_its_share_at_most() -> None:
    def first(chance: float) -> float | None:
        return Restarts(RestartPolicy(initial_delay=10, jitter=0.1), 5).failed(0, chance)

    assert first(0) == pytest.approx(9)
    assert first(0.5) == pytest.approx(10)
    assert first(1) == pytest.approx(11)


def test_a_service_that_ran_for_the_stable_threshold_begins_anew() -> None:
    restarts = Restarts(RestartPolicy(jitter=0), stable_threshold=5)
    assert [restarts.failed(0, 0) for _ in range(3)] == [1, 2, 4]
    restarts.started(100)
    assert restarts.failed(104.9, 0) == 8
    restarts.started(200)
    assert restarts.failed(205, 0) == 1
    assert restarts.attempts == 1


def test_it_is_given_up_after_the_last_attempt() -> None:
    restarts = Restarts(RestartPolicy(max_attempts=3), stable_threshold=5)
    assert restarts.failed(0, 0) is not None
    assert restarts.failed(0, 0) is not None
    assert restarts.failed(0, 0) is None


@given(policies, st.lists(st.tuples(st.floats(0, 100), st.floats(0, 0.999)), max_size=60))
def test_a_restart_loop_is_never_a_busy_loop(
    policy: RestartPolicy, failures: list[tuple[float, float]]
) -> None:
    restarts, now = Restarts(policy, 5), 0.0
    for lifetime, chance in failures:
        restarts.started(now)
        now += lifetime
        delay = restarts.failed(now, chance)
        if delay is None:
            assert restarts.attempts >= policy.max_attempts > 0
            return
        assert policy.initial_delay * (1 - policy.jitter) <= delay * (1 + 1e-9)
        assert delay <= policy.max_delay * (1 + policy.jitter) * (1 + 1e-9)
        assert not policy.max_attempts or restarts.attempts < policy.max_attempts
        now += delay


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_delay": 0},
        {"initial_delay": 0.009},
        {"initial_delay": 5, "max_delay": 4},
        {"backoff_factor": 0.5},
        {"jitter": -0.1},
        {"jitter": 1},
        {"max_attempts": -1},
    ],
)
def test_a_policy_that_makes_no_sense_names_the_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        RestartPolicy(**wrong)
