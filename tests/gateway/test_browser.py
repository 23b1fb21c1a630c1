"""The built-in page in headless Chromium against the real `wsrelay run`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chromium import Window, below_prefix, launched, no_workers, opened
from playwright.sync_api import Browser, Page, expect
from running import HANDLERS, Running, gone, until


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


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running(HANDLERS / "echo.py") as running:
        yield running


def connect(page: Page) -> None:
    page.click("#connect")
    expect(page.locator("#status")).to_have_text("open")


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def frames(page: Page, direction: str) -> Any:
    return page.locator(f'.frame[data-direction="{direction}"] .payload')


def test_the_page_sends_text_and_shows_what_comes_back(window: Window, echo: Running) -> None:
    page = window.open(echo.http())
    expect(page).to_have_title("wsrelay")
    expect(page.locator("#status")).to_have_text("closed")
    expect(page.locator("#url")).to_have_value(echo.ws())
    expect(page.locator("#send")).to_be_disabled()
    connect(page)
    say(page, "héllo <b>there</b>")
    expect(frames(page, "out")).to_have_text(["héllo <b>there</b>"])
    expect(frames(page, "in")).to_have_text(["héllo <b>there</b>"])
    expect(page.locator("#message")).to_have_value("")
    page.fill("#message", "by the button")
    page.click("#send")
    expect(frames(page, "in")).to_have_text(["héllo <b>there</b>", "by the button"])
    expect(page.locator("#counts")).to_have_text("2 in, 2 out")


def test_the_page_sends_bytes_and_files_as_binary(
    window: Window, echo: Running, tmp_path: Path
) -> None:
    page = window.open(echo.http())
    connect(page)
    page.fill("#hex", "de ad 0xBE:ef")
    page.click("#send-binary")
    expect(frames(page, "in")).to_have_text(["de ad be ef"])
    file = tmp_path / "some.bin"
    file.write_bytes(b"\x00\x01\xff")
    page.set_input_files("#file", file)
    page.click("#send-file")
    expect(frames(page, "in")).to_have_text(["de ad be ef", "00 01 ff"])
    expect(page.locator('.frame[data-direction="in"] .type')).to_have_text(["binary", "binary"])
    page.fill("#hex", "dea")
    page.click("#send-binary")
    expect(page.locator("#send-error")).to_contain_text("pairs of the digits")
    expect(frames(page, "out")).to_have_count(2)


def test_the_page_lays_json_out_and_keeps_its_numbers(window: Window, echo: Running) -> None:
    page = window.open(echo.http())
    connect(page)
    say(page, '{"a":[1,{"b":"x, {y}"}],"n":12345678901234567890,"e":{}}')
    [shown] = [frames(page, "in").first]
    expect(shown).to_be_visible()
    assert shown.text_content() == (
        '{\n  "a": [\n    1,\n    {\n      "b": "x, {y}"\n    }\n  ],\n'
        '  "n": 12345678901234567890,\n  "e": {}\n}'
    )


def test_the_page_shows_code_and_reason_when_the_process_is_killed(
    window: Window, echo: Running
) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    [os_pid] = echo.workers()
    os.kill(os_pid, signal.SIGKILL)
    expect(page.locator("#close-code")).to_have_text("1011")
    expect(page.locator("#close-reason")).to_have_text("target process killed (SIGKILL)")
    expect(page.locator("#close-clean")).to_have_text("yes")
    expect(page.locator("#closing")).to_have_class(re.compile("abnormal"))
    expect(page.locator("#next-try")).to_have_text("succeeded")
    expect(page.locator("#reconnects")).to_have_text("reconnected 1 time")
    say(page, "again")
    expect(frames(page, "in")).to_have_text(["again"])


def test_the_page_stays_closed_where_it_is_to_and_connects_again_by_hand(
    window: Window, echo: Running
) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    page.uncheck("#again")
    connect(page)
    [os_pid] = echo.workers()
    os.kill(os_pid, signal.SIGKILL)
    expect(page.locator("#close-code")).to_have_text("1011")
    expect(page.locator("#status")).to_have_text("closed")
    expect(page.locator("#next-try")).to_have_text("none")
    connect(page)
    expect(page.locator("#closing")).to_be_hidden()
    say(page, "again")
    expect(frames(page, "in")).to_have_text(["again"])


def test_the_page_closes_with_the_code_and_reason_that_were_asked_for(
    window: Window, echo: Running
) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    page.fill("#disconnect-code", "1001")
    page.click("#disconnect")
    expect(page.locator("#disconnect-error")).to_contain_text("1000, or 3000 to 4999")
    page.fill("#disconnect-code", "4001")
    page.fill("#disconnect-reason", "enough")
    page.click("#disconnect")
    expect(page.locator("#close-code")).to_have_text("4001")
    expect(page.locator("#close-reason")).to_have_text("enough")
    no_workers(echo)


def test_the_page_shows_1012_when_the_server_is_terminated(window: Window) -> None:
    with Running(HANDLERS / "echo.py") as running:
        page = window.open(running.http())
        connect(page)
        running.signal(signal.SIGTERM)
        expect(page.locator("#close-code")).to_have_text("1012")
        expect(page.locator("#close-reason")).to_have_text("node shuts down")
        assert running.wait() == 0
        expect(page.locator("#log")).to_contain_text("Closed: 1006. Next try in")
        expect(page.locator("#close-code")).to_have_text("1012")
        page.click("#connect")
        expect(page.locator("#close-code")).to_have_text("1006")
        expect(page.locator("#close-meaning")).to_contain_text("The connection failed")


def test_closing_the_tab_ends_its_process(window: Window, echo: Running) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    [os_pid] = echo.workers()
    worker = psutil.Process(os_pid)
    page.close()
    until(lambda: gone(worker), "the process is gone")


def test_two_tabs_chat_with_each_other(window: Window) -> None:
    with Running(f"{HANDLERS}/chat.py:Chat", "--scope", "room") as running:
        ada = window.open(running.http("/?room=kitchen"))
        expect(ada.locator("#room")).to_have_value("kitchen")
        bob = window.open(running.http("/?room=kitchen"))
        away = window.open(running.http("/?room=cellar"))
        for page, name in ((ada, "Ada"), (bob, "Bob"), (away, "Eve")):
            page.bring_to_front()
            page.fill("#url", f"{running.ws()}?name={name}")
            connect(page)
        expect(ada.locator("#address")).to_have_text(running.ws("/ws/kitchen?name=Ada"))
        ada.bring_to_front()
        expect(frames(ada, "in")).to_contain_text(["Ada joined", "Bob joined"])
        say(ada, '{"type": "say", "text": "is somebody here?"}')
        bob.bring_to_front()
        expect(frames(bob, "in")).to_contain_text(["Bob joined", "is somebody here?"])
        say(bob, '{"type": "say", "text": "I am"}')
        expect(frames(ada, "in").last).to_contain_text('"name": "Bob"')
        expect(frames(ada, "in").last).to_contain_text('"text": "I am"')
        bob.close()
        ada.bring_to_front()
        expect(frames(ada, "in").last).to_contain_text("Bob left")
        expect(frames(away, "in")).to_contain_text(["history", "Eve joined"])
        expect(frames(away, "in")).to_have_count(2)


def test_the_page_works_below_the_prefix_of_a_proxy(window: Window, echo: Running) -> None:
    with below_prefix(echo) as url:
        page = window.open(url)
        expect(page.locator("#url")).to_have_value(f"{url.replace('http', 'ws', 1)}ws")
        connect(page)
        say(page, "hello")
        expect(frames(page, "in")).to_have_text(["hello"])
        page.close()
