"""A part of a long list: what is searched for, in order, as much as a page shows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from made_up import look

from wsrelay.console.listing import PAGE, listed

Item = tuple[str, int | None]

items = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=4), st.one_of(st.none(), st.integers(0, 9))),
    unique_by=lambda item: item[0],
    max_size=130,
)


def part(of: list[Item], **values: Any) -> dict[str, Any]:
    return listed(
        of,
        look(**values),
        columns={"number": lambda item: item[1], "name": lambda item: item[0]},
        words=lambda item: f"{item[0]} x",
        key=lambda item: item[0],
        row=lambda item: {"name": item[0]},
    )


def whole(of: list[Item], **values: Any) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    for start in range(0, max(part(of, **values)["match"], 1), PAGE):
        shown = part(of, start=start, **values)
        assert shown["start"] == start
        assert len(shown["order"]) <= PAGE
        assert shown["rows"] == {name: {"name": name} for name in shown["order"]}
        found += shown["order"]
    return found


@given(items, st.booleans(), st.sampled_from(["", "number", "name", "nonsense"]))
def test_the_pages_together_have_each_item_once_and_in_order(
    of: list[Item], descending: bool, sort: str
) -> None:
    found = whole(of, descending=descending, sort=sort)
    numbers = dict(of)
    if sort == "name":
        assert found == sorted(numbers, reverse=descending)
        return
    known = [name for name in found if numbers[name] is not None]
    assert found[: len(known)] == known, "what is not known is last"
    assert sorted(found) == sorted(numbers)
    values = [numbers[name] for name in known]
    assert values == sorted(values, key=int, reverse=descending)  # type: ignore[arg-type]


@given(items, st.text("abcx ", max_size=5))
def test_a_search_finds_what_has_all_its_words(of: list[Item], search: str) -> None:
    shown = part(of, search=search)
    wanted = [name for name, _ in of if all(word in f"{name} x" for word in search.split())]
    assert (shown["total"], shown["match"]) == (len(of), len(wanted))
    assert sorted(whole(of, search=search)) == sorted(wanted)


def test_a_search_does_not_mind_capitals() -> None:
    assert part([("abc", 1), ("cab", 2)], search="BC")["order"] == ["abc"]


def test_a_start_beyond_the_end_shows_the_last_page() -> None:
    shown = part([(f"{number:03}", 0) for number in range(120)], start=10_000)
    assert shown["start"] == 100
    assert len(shown["order"]) == 20
