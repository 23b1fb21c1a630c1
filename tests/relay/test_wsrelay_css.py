"""`wsrelay.css`: what it says can be read, in light and in dark, and nothing comes from outside."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

SOURCE = re.sub(
    r"/\*.*?\*/", "", files("wsrelay.relay").joinpath("wsrelay.css").read_text(), flags=re.DOTALL
)
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})\b", block))
    for block in re.findall(r":root \{(.*?)\}", SOURCE, re.DOTALL)[:2]
)
SCHEMES = pytest.mark.parametrize("tokens", [LIGHT, {**LIGHT, **DARK}], ids=["light", "dark"])

# WCAG 2.2: text has 4.5 (1.4.3, level AA); what shows a control, a state or a curve has 3 (1.4.11).
TEXT = 4.5
SHAPE = 3.0
PLACES = ("ground", "card", "sunken", "hover")
WORDS = ("ink", "muted", "accent", "good", "wait", "bad", "in", "out")
SHAPES = ("field", *(f"chart-{number}" for number in range(1, 7)))


def luminance(colour: str) -> float:
    def linear(part: int) -> float:
        share = part / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == 21
    assert 4.47 < contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")


@SCHEMES
def test_words_can_be_read_wherever_they_stand(tokens: dict[str, str]) -> None:
    pairs = [(word, place) for word in WORDS for place in PLACES]
    pairs += [("on-accent", "accent"), ("on-bad", "bad")]
    found = {pair: contrast(tokens[pair[0]], tokens[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in found.items() if ratio < TEXT} == {}


@SCHEMES
def test_the_edges_of_fields_and_the_curves_of_charts_can_be_seen(tokens: dict[str, str]) -> None:
    found = {(s, place): contrast(tokens[s], tokens[place]) for s in SHAPES for place in PLACES}
    assert {pair: ratio for pair, ratio in found.items() if ratio < SHAPE} == {}


def test_dark_and_light_have_the_same_colours() -> None:
    assert DARK.keys() == LIGHT.keys()


def test_each_token_that_is_used_is_set() -> None:
    used = set(re.findall(r"var\(--([\w-]+)\)", SOURCE))
    assert used - set(re.findall(r"--([\w-]+):", SOURCE)) == set()


def test_nothing_comes_from_outside() -> None:
    assert "@import" not in SOURCE
    assert "@font-face" not in SOURCE
    sources = re.findall(r"url\((.*)", SOURCE)
    assert sources
    assert all(source.startswith('"data:') for source in sources)


def test_who_wants_no_motion_gets_none() -> None:
    calm = SOURCE.partition("@media (prefers-reduced-motion: no-preference)")[0]
    assert calm != SOURCE
    assert not re.search(r"\b(transition|animation|scroll-behavior)\b", calm)
