"""The pages of the examples in headless Chromium."""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Window, below_prefix, launched, opened
from pages import DOCS, written
from playwright.sync_api import Browser, Page, expect
from running import HANDLERS, Running, Typed, until


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


def test_the_page_of_life_works_below_the_prefix_of_a_proxy(window: Window, life: Running) -> None:
    with below_prefix(life) as url:
        page = window.open(f"{url}?room=prefix")
        living(page)
        page.close()


# Life


@pytest.fixture(scope="module")
def life() -> Iterator[Running]:
    options = ["--scope", "room", "--static", str(HANDLERS / "pages" / "life")]
    with Running(HANDLERS / "life.py", *options) as running:
        yield running


COLOURS = """() => {
    const board = document.getElementById("board");
    const bytes = board.getContext("2d").getImageData(0, 0, board.width, board.height).data;
    const counts = {};
    for (const colour of new Uint32Array(bytes.buffer)) counts[colour] = (counts[colour] ?? 0) + 1;
    return [board.width, board.height, counts, Array.from(new Uint32Array(bytes.buffer)).join()];
}"""


def living(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("open")
    expect(page.locator("#os-pid")).to_have_text(re.compile(r"^\d+$"))


def generation(page: Page) -> int:
    return int(page.locator("#generation").text_content() or "")


def shown_since(page: Page, seen: int) -> bool:
    return generation(page) > seen


def shows_cells(page: Page, count: int) -> bool:
    """Whether the board shows so many cells, whatever their age, all others in one colour."""
    *_, rest = sorted(page.evaluate(COLOURS)[2].values())
    return bool(rest == 96 * 64 - count)


def test_the_page_of_life_draws_the_generations_on_its_canvas(
    window: Window, life: Running
) -> None:
    page = window.open(life.http("/?room=drawing"))
    living(page)
    expect(page.locator("#generation")).to_have_text(re.compile(r"^([3-9]|\d\d+)$"))
    width, height, colours, first = page.evaluate(COLOURS)
    assert (width, height) == (96, 64)
    assert len(colours) > 2, "dead cells, living ones, and those that fade"
    assert max(colours.values()) < width * height
    until(lambda: page.evaluate(COLOURS)[3] != first, "the picture changes")


def test_the_page_of_life_pauses_clears_and_draws(window: Window, life: Running) -> None:
    other = window.open(life.http("/?room=pausing"))
    page = window.open(life.http("/?room=pausing"))
    for one in (page, other):
        living(one)
    page.click("#pause")
    for one in (page, other):
        expect(one.locator("#pause")).to_have_text("Resume")
    for _ in range(10):  # until what has died is faded
        seen = generation(page)
        page.click("#clear")
        until(functools.partial(shown_since, page, seen), "the board is shown once more")
    until(lambda: len(page.evaluate(COLOURS)[2]) == 1, "the board is empty")
    page.locator("#board").click(position={"x": 50, "y": 50})
    for one in (page, other):
        one.bring_to_front()
        until(functools.partial(shows_cells, one, 1), "the cell is drawn in both tabs")
    page.bring_to_front()
    for key in ("ArrowLeft", "ArrowUp", "Space", "Tab"):
        page.press("#board", key)
    other.bring_to_front()
    until(functools.partial(shows_cells, other, 2), "another is drawn by the keyboard")


def test_tabs_of_one_room_show_one_process_and_another_room_another(
    window: Window, life: Running
) -> None:
    paths = ["/?room=one", "/?room=one", "/?room=two"]
    pages = [window.open(life.http(path)) for path in paths]
    for page in pages:
        living(page)
    one, same, two = (int(page.locator("#os-pid").text_content() or "") for page in pages)
    assert one == same != two
    assert {one, two} <= set(life.workers())


def test_the_page_of_life_says_that_its_process_was_killed_and_connects_again(
    window: Window, life: Running
) -> None:
    page = window.open(life.http("/?room=victim"))
    living(page)
    os_pid = int(page.locator("#os-pid").text_content() or "")
    os.kill(os_pid, signal.SIGKILL)
    expect(page.locator("#detail")).to_contain_text("1011")
    expect(page.locator("#detail")).to_contain_text("SIGKILL")
    page.click("#reconnect")
    living(page)
    assert int(page.locator("#os-pid").text_content() or "") != os_pid


# The example applications


def test_the_chat_of_the_configuration_is_one_room_for_two_windows(
    browser: Browser, window: Window
) -> None:
    with Running(HANDLERS / "wsrelay.yaml") as running:
        other = browser.new_context()
        pages = [window.open(running.http()), other.new_page()]
        pages[1].goto(running.http())
        for page, name in zip(pages, ("Ada", "Bob"), strict=True):
            page.fill("#name", name)
            page.click("#door button")
            expect(page.locator("#status")).to_have_text("in lobby")
        pages[0].fill("#text", "hello <b>Bob</b>")
        pages[0].press("#text", "Enter")
        for page in pages:
            expect(page.locator("li.said")).to_have_text(["Adahello <b>Bob</b>"])
        pages[0].locator("#members button", has_text="Bob").press("Enter")
        expect(pages[1].locator("#ended")).to_contain_text("Closed with 4001: thrown out by Ada.")
        expect(pages[1].locator("#status")).to_have_text("closed")
        expect(pages[1].locator("#members button")).to_have_count(0)
        pages[1].click("#ended button")
        expect(pages[1].locator("#status")).to_have_text("in lobby")
        expect(pages[1].locator("#ended")).to_be_hidden()
        other.close()


def test_the_picture_is_painted_tile_by_tile_and_again_after_a_click(window: Window) -> None:
    with Running(HANDLERS / "mandelbrot.yaml") as running:
        page = window.open(running.http())
        done = "click: closer, right click: further away"
        expect(page.locator("#status")).to_have_text(done)

        def colours() -> int:
            count: int = page.evaluate(
                """() => {
                  const canvas = document.getElementById("picture");
                  const context = canvas.getContext("2d");
                  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
                  return new Set(new Uint32Array(data.buffer)).size;
                }"""
            )
            return count

        assert colours() > 10
        page.click("#picture", position={"x": 300, "y": 200})
        expect(page.locator("#status")).to_have_text(done)
        assert colours() > 10


# The tutorial


def test_the_page_of_the_tutorial_logs_in_and_talks(window: Window, tmp_path: Path) -> None:
    tutorial = DOCS / "tutorial.md"
    written(tutorial, tmp_path)
    [command] = re.findall(r"^uvicorn .*$", tutorial.read_text(encoding="utf-8"), re.MULTILINE)
    with Typed(command, "--port", "0", cwd=tmp_path) as running:
        pages = [window.open(running.http()) for _ in range(2)]
        for page, name in zip(pages, ("Ada", "Bob"), strict=True):
            page.fill("#name", name)
            page.click("#login button")
            expect(page.locator("#state")).to_have_text("open")
        ada, bob = pages
        expect(ada.locator("#here")).to_have_text("here: Ada, Bob")
        bob.fill("#text", "hello")
        bob.click("#chat button")
        for page in pages:
            expect(page.locator("#said")).to_have_text("Bob: hello")
