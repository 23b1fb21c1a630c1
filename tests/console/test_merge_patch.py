"""Differences of what is visible, and what the page makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsrelay.console
from wsrelay.console.merge_patch import difference, patched

PAGE = Path(wsrelay.console.__file__).parent / "page"
NODE = shutil.which("node") or ""

scalars = st.one_of(st.booleans(), st.integers(-(2**50), 2**50), st.text('ab"', max_size=3))
keys = st.sampled_from(["a", "b", "c", "d"])
states = st.recursive(
    st.dictionaries(keys, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4),
    lambda inner: st.dictionaries(keys, st.one_of(inner, scalars), max_size=4),
    max_leaves=12,
)


def _same(one: Any, other: Any) -> bool:
    """Whether they are the same JSON: to Python, 1 and true are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(states, states)
def test_a_difference_makes_the_new_state_of_the_old_one(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert _same(patched(old, difference(old, new)), new)


@given(states)
def test_between_equal_states_there_is_no_difference(state: dict[str, Any]) -> None:
    assert difference(state, json.loads(json.dumps(state))) == {}


def test_a_difference_has_only_what_has_changed() -> None:
    old = {"rows": {"1": {"cpu": 1.0, "name": "a"}, "2": {"cpu": 2.0}}, "order": ["1", "2"]}
    new = {"rows": {"1": {"cpu": 1.5, "name": "a"}}, "order": ["1"]}
    assert difference(old, new) == {"rows": {"1": {"cpu": 1.5}, "2": None}, "order": ["1"]}


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"a": {}}),
    ({"a": {"b": 1}}, {"a": {}}),
    ({"a": 1}, {"a": {"b": {"c": [1]}}}),
    ({"a": [1, 2]}, {"a": {"b": 1}}),
    ({"a": {"b": 1}}, {"a": [1, 2]}),
    ({"a": True}, {"a": 1}),
    ({"a": {"b": 1, "c": {"d": 2}}, "x": 0}, {"a": {"c": {"e": ""}}, "y": False}),
]


@pytest.mark.skipif(not NODE, reason="node is not installed")
def test_the_page_makes_the_same_of_a_difference() -> None:
    cases = [[old, difference(old, new), new] for old, new in CASES]
    program = f"""
        globalThis.document = {{ addEventListener() {{}} }};
        const source = {json.dumps((PAGE / "live.js").read_text())}
            .replace(/^import .*$/m, "const connect = null;");
        const module = "data:text/javascript," + encodeURIComponent(source);
        const {{ patched }} = await import(module);
        for (const [old, patch, wanted] of {json.dumps(cases)}) {{
            const sorted = value => JSON.stringify(value, (_, v) =>
                v && typeof v === "object" && !Array.isArray(v)
                    ? Object.fromEntries(Object.entries(v).sort()) : v);
            const before = sorted(old);
            const got = sorted(patched(old, patch));
            if (got !== sorted(wanted)) throw new Error(`${{got}} is not ${{sorted(wanted)}}`);
            if (before !== sorted(old)) throw new Error("the old state has changed");
        }}
        console.log("all", {len(cases)});
    """
    done = subprocess.run(
        [NODE, "--input-type=module"],
        input=program,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == f"all {len(CASES)}", done.stderr
