"""JSON, as clients get it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from wsrelay import PID, PayloadError
from wsrelay.values.client import Client
from wsrelay.values.json_text import json_text


@dataclasses.dataclass
class Point:
    x: float
    seen: Any = None


class Say(msgspec.Struct, tag="say"):
    text: str


class Colour(enum.Enum):
    RED = "red"


ME = "{local@gateway|k3f9.0-1}"
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, {"a": [1, 2.5, None, True, "é"]}),
        (Point(1.0), {"x": 1.0, "seen": None}),
        (Say("hi"), {"type": "say", "text": "hi"}),
        (
            dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC),
            "2026-01-02T03:00:00Z",
        ),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (Decimal("1.50"), "1.50"),
        ((1, {2}), [1, [2]]),
        (Colour.RED, "red"),
        (b"\x00\xff", "AP8="),
        ([float("nan"), float("inf")], [None, None]),
        ({1: "a"}, {"1": "a"}),
        ({Client(ME, {"name": "ann"}): PID(ME)}, {ME: ME}),
        (2**70, 2**70),
    ],
)
def test_whatever_can_be_a_payload_has_a_form_in_json(value: Any, expected: Any) -> None:
    assert json.loads(json_text(value)) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), "value: builtins.object is not data"),
        ({"a": [1, {"b": 1j}]}, "value['a'][1]['b']: builtins.complex is not data"),
        (Point(1.0, seen=[print]), "value.seen[0]: builtins.builtin_function_or_method is not"),
        (Say("\ud800"), "value.text: the text has surrogates"),
        ([{(1, 2): 3}], "value[0], key (1, 2): a tuple cannot be a key"),
        (LOOP, "nested too deeply, or inside itself"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_its_place(value: Any, error: str) -> None:
    with pytest.raises(PayloadError) as caught:
        json_text(value)
    assert error in str(caught.value)
