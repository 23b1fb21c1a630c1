"""Copies of the names of other nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster.directory import Directory
from wsrelay.cluster.frames import Named
from wsrelay.cluster.peer import Peer
from wsrelay.errors import WireError

ANN, BEN = Peer("ann", "1"), Peer("ben", "1")


def named(name: str, node: str, fence: int, number: int = 1) -> Named:
    return Named(name, f"{{{node}@processes|x.0-{number}}}", fence)


def test_a_name_is_found_from_when_it_was_told_until_it_was_freed() -> None:
    directory = Directory()
    directory.learn(ANN, [named("room", "ann", 1), named("hall", "ann", 2, 2)])
    assert directory.get("room") == "{ann@processes|x.0-1}"
    assert directory.owner("hall") == ANN
    assert directory.names(ANN) == {"room", "hall"}
    directory.learn(ANN, [Named("room", "")])
    assert (directory.get("room"), directory.owner("room")) == (None, None)
    assert [*directory] == ["hall"]
    directory.learn(ANN, [Named("room", "")])  # again, as after a link's beginning


def test_a_name_passes_to_the_next_process_of_its_node() -> None:
    directory = Directory()
    directory.learn(ANN, [named("room", "ann", 1)])
    directory.learn(ANN, [named("room", "ann", 2, 2)])
    assert directory.get("room") == "{ann@processes|x.0-2}"


def test_of_two_nodes_that_tell_the_same_name_the_greater_fence_wins_in_either_order() -> None:
    former, later = (ANN, [named("room", "ann", 1)]), (BEN, [named("room", "ben", 2)])
    for order in ((former, later), (later, former)):
        directory = Directory()
        for peer, names in order:
            directory.learn(peer, names)
        assert directory.owner("room") == BEN
        directory.learn(ANN, [Named("room", "")])
        assert directory.owner("room") == BEN


def test_a_name_that_its_later_owner_frees_first_is_its_former_ones_until_that_frees_it_too() -> (
    None
):
    directory = Directory()
    directory.learn(ANN, [named("room", "ann", 1)])
    directory.learn(BEN, [named("room", "ben", 2)])
    directory.learn(BEN, [Named("room", "")])
    assert directory.owner("room") == ANN
    directory.drop(ANN)
    assert directory.owner("room") is None
    assert len(directory) == 0


def test_a_node_that_is_down_takes_its_names_with_it_and_no_others() -> None:
    directory = Directory()
    directory.learn(ANN, [named("room", "ann", 1)])
    directory.learn(BEN, [named("hall", "ben", 2)])
    directory.drop(ANN)
    directory.drop(ANN)
    assert [*directory] == ["hall"]
    directory.learn(Peer("ann", "2"), [named("room", "ann", 3)])
    assert directory.owner("room") == ("ann", "2")


@pytest.mark.parametrize(
    "wrong",
    [
        Named("room", "{ben@processes|1}", 1),
        Named("room", "{processes|1}", 1),
        Named("room", "room", 1),
        Named("", "{ann@processes|1}", 1),
        Named("{ann@processes|1}", "{ann@processes|1}", 1),
        Named("local/ticker", "{ann@processes|1}", 1),
    ],
)
def test_what_no_node_of_ours_tells_is_refused(wrong: Named) -> None:
    directory = Directory()
    with pytest.raises(WireError, match="ann"):
        directory.learn(ANN, [wrong])
    assert len(directory) == 0


PEERS: list[Peer] = [Peer(name, "1") for name in ("ann", "ben", "cyd")]
STEPS = st.tuples(
    st.sampled_from(PEERS), st.sampled_from(["a", "b"]), st.sampled_from(["give", "free", "drop"])
)


@given(st.lists(STEPS), st.randoms())
def test_what_is_found_is_always_the_latest_of_what_the_nodes_have_told(
    steps: list[tuple[Peer, str, str]], random: object
) -> None:
    directory, model = Directory(), {peer: dict[str, int]() for peer in PEERS}
    for step, (peer, name, what) in enumerate(steps):
        fence = random.randrange(step + 1) * 3 + PEERS.index(peer)  # type: ignore[attr-defined]
        if what == "give":
            directory.learn(peer, [named(name, peer.node, fence)])
            model[peer][name] = fence
        elif what == "free":
            directory.learn(peer, [Named(name, "")])
            model[peer].pop(name, None)
        else:
            directory.drop(peer)
            model[peer].clear()
        for one in ("a", "b"):
            there = [(names[one], peer) for peer, names in model.items() if one in names]
            assert directory.owner(one) == (max(there)[1] if there else None)
