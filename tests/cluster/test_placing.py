"""Where a process goes that may run on any node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster.placing import roomiest

ROOM = st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 100))
OTHERS = st.dictionaries(st.sampled_from(["b", "c"]), ROOM)


def test_it_goes_where_its_host_has_most_room() -> None:
    others = {"b": {"x": 30, "y": 1}, "c": {"x": 20, "y": 5, "z": 1}}
    assert roomiest({"x": 10, "y": 1}, others, {}) == {"x": "b", "y": "c", "z": "c"}


def test_it_stays_where_there_is_as_much_room_as_elsewhere() -> None:
    assert roomiest({"x": 10}, {"b": {"x": 10}}, {}) == {}
    assert roomiest({"x": 0}, {"b": {"x": 0}}, {}) == {}


def test_a_choice_stays_until_another_node_has_clearly_more_room() -> None:
    assert roomiest({"x": 80}, {"b": {"x": 79}}, {"x": "b"}) == {"x": "b"}
    assert roomiest({"x": 80}, {"b": {"x": 60}}, {"x": "b"}) == {}
    assert roomiest({"x": 80}, {"b": {"x": 90}}, {}) == {}
    assert roomiest({"x": 80}, {"b": {"x": 90}, "c": {"x": 100}}, {"x": "b"}) == {"x": "b"}


def test_who_is_full_or_gone_is_chosen_no_more() -> None:
    assert roomiest({"x": 1}, {"b": {"x": 0}}, {"x": "b"}) == {}
    assert roomiest({}, {"c": {"x": 1}}, {"x": "b"}) == {"x": "c"}
    assert roomiest({}, {}, {"x": "b"}) == {}


@given(ROOM, OTHERS, st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["b", "c"])))
def test_the_choice_has_the_host_and_no_less_than_three_quarters_of_the_most_room(
    own: dict[str, int], others: dict[str, dict[str, int]], before: dict[str, str]
) -> None:
    chosen = roomiest(own, others, before)
    for host in ("x", "y"):
        rooms = [hosts[host] for hosts in (own, *others.values()) if host in hosts]
        if not rooms:
            assert host not in chosen
            continue
        got = others[chosen[host]][host] if host in chosen else own[host]
        assert got >= max(rooms) * 3 / 4
