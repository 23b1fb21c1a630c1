"""All pages in headless Chromium: they fit all screens, and come back by themselves.

Pictures of them, light and dark, go to the folder that the environment variable
WSRELAY_SCREENSHOTS names; without it only light ones, to pytest's folder.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from chromium import Window, launched, opened
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from running import HANDLERS, Running

PAGES = HANDLERS / "pages"


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not looked at here: the browser starts and ends processes as it likes.

    What the servers leave behind is still seen by `Running`.
    """


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    with opened(browser) as window:
        yield window


# What is outside of the window's width, and does not stand in a box that scrolls or cuts.
OUTSIDE = """() => {
    const visible = node => getComputedStyle(node).overflowX === "visible";
    const cut = node => node !== null && (!visible(node) || cut(node.parentElement));
    const names = [...document.body.querySelectorAll("*")]
        .filter(node => node.checkVisibility() && !cut(node.parentElement))
        .filter(node => node.getBoundingClientRect().right > innerWidth + 0.5)
        .map(node => `${node.tagName} ${node.id}`);
    const width = document.documentElement.scrollWidth;
    return width > innerWidth ? [...names, `all: ${width}`] : names;
}"""


def pictures(page: Page, name: str, folder: Path) -> None:
    """See whether the page fits, and take pictures of it; leaves it narrow and light."""
    asked = os.environ.get("WSRELAY_SCREENSHOTS")
    for width, height in ((1600, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate(OUTSIDE) == [], (name, width)
        for colours in ("dark", "light") if asked else ("light",):
            page.emulate_media(color_scheme=colours)
            picture = Path(asked or folder, f"{name}-{width}-{colours}.png")
            page.screenshot(path=picture, animations="disabled")


class Uvicorn(Running):
    """`uvicorn --app-dir handlers APPLICATION` instead."""

    def __init__(self, application: str, port: int, folder: Path) -> None:
        super().__init__(application, cwd=folder)
        options = ["--app-dir", str(HANDLERS), "--port", str(port), application]
        self._command = [sys.executable, "-m", "uvicorn", *options]


def script(target: str, *options: str, page: str | None = None) -> Callable[..., Running]:
    static = () if page is None else ("--static", str(PAGES / page))

    def start(port: int, _: Path) -> Running:
        return Running(f"{HANDLERS}/{target}", *options, *static, port=port)

    return start


# How a page is put to use; again after a restart, where nothing need be entered anew.


def talk(page: Page, again: bool, _: Callable[[], Page]) -> None:
    if not again:
        page.press("#connect", "Enter")
    expect(page.locator("#status")).to_have_text("open")
    page.fill("#message", '{"some": ["json"]}')
    page.press("#message", "Enter")
    count = 2 if again else 1
    expect(page.locator('.frame[data-direction="in"]')).to_have_count(count)


def chat(page: Page, again: bool, _: Callable[[], Page]) -> None:
    if not again:
        page.fill("#name", "Ada")
        page.press("#name", "Enter")
    expect(page.locator("#members button")).to_have_text("Ada")
    page.fill("#text", "hello " * 50)
    page.press("#text", "Enter")
    expect(page.locator("li.said")).to_contain_text("hello hello")


def live(page: Page, *_: object) -> None:
    expect(page.locator("#os-pid")).to_have_text(re.compile(r"^\d+$"))
    shown = page.locator("#generation").text_content() or ""
    expect(page.locator("#generation")).not_to_have_text(shown)


def zoom(page: Page, again: bool, _: Callable[[], Page]) -> None:
    page.press("#picture", "-" if again else "+")
    expect(page.locator("#status")).to_have_text("click: closer, right click: further away")


def play(page: Page, again: bool, another: Callable[[], Page]) -> None:
    if not again:
        page.fill("#player", "ada")
        page.press("#player", "Enter")
        other = another()
        other.fill("#player", "bob")
        other.press("#player", "Enter")
        page.bring_to_front()
    expect(page.locator("#score")).to_have_text(re.compile(r"^(ada\d:\dbob|bob\d:\dada)$"))


def ask(page: Page, *_: object) -> None:
    expect(page.locator("#send")).to_be_enabled()
    page.press("#question", "Enter")
    expect(page.locator("#answer")).to_contain_text("November 2026")
    expect(page.locator("#how")).to_have_text("done")


def estimate(page: Page, again: bool, _: Callable[[], Page]) -> None:
    if not again:
        page.press("#name", "Enter")
        expect(page.locator("#count")).to_have_text("0")
        page.fill("#numbers", "1 2 three")
        expect(page.locator("#error")).to_contain_text("three is no number")
    page.fill("#numbers", "1\n2\n3\n4.5")
    page.press("#ask button", "Enter")
    expect(page.locator("#answer")).to_contain_text(re.compile(r"between \d"))


class Shown(NamedTuple):
    """A page, served as the documentation says, and its parts."""

    start: Callable[..., Running]
    use: Callable[[Page, bool, Callable[[], Page]], None]
    chip: str = "#status"
    ended: str = "#ended"


SHOWN = {
    "built-in": Shown(script("echo.py"), talk, ended="#closing"),
    "chat": Shown(
        script("chat.py:Chat", "--scope", "room", "--path", "/ws/rooms", page="chat"), chat
    ),
    "life": Shown(script("life.py", "--scope", "room", page="life"), live, ended="#detail"),
    "mandelbrot": Shown(script("mandelbrot.yaml"), zoom, chip="#connection"),
    "game": Shown(script("game.py:Lobby", "--scope", "shared", page="game"), play),
    "agent": Shown(script("agent.py:Agent", page="agent"), ask),
    "document": Shown(lambda port, folder: Uvicorn("document:app", port, folder), estimate),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_fits_all_screens_and_comes_back_when_its_server_does(
    window: Window, name: str, tmp_path: Path
) -> None:
    if name in ("mandelbrot", "document"):
        pytest.importorskip("numpy")
    start, use, chip, ended = SHOWN[name]
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    with start(0, tmp_path) as first:
        page = window.open("about:blank")
        page.on("console", note)
        page.goto(first.http())
        pictures(page, f"{name}-1-first", tmp_path)
        use(page, False, lambda: window.open(first.http()))
        pictures(page, f"{name}-2-used", tmp_path)
        assert errors == []
        port = int(first.address.rpartition(":")[2])
    expect(page.locator(chip)).not_to_have_attribute("data-state", "open")
    expect(page.locator(ended)).to_be_visible()
    pictures(page, f"{name}-3-away", tmp_path)
    with start(port, tmp_path):
        expect(page.locator(chip)).to_have_attribute("data-state", "open")
        if name != "built-in":  # which goes on telling how it has ended
            expect(page.locator(ended)).to_be_hidden()
        use(page, True, lambda: page)
