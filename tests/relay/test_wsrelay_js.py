"""`wsrelay.js` under node: its logic alone, and with node's own WebSocket."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from running import TIMEOUT, Running

NODE = shutil.which("node") or ""
HERE = Path(__file__).parent
OBEDIENT = HERE.parent / "apps" / "obedient.py"
MODULE = HERE.parents[1] / "wsrelay" / "relay" / "wsrelay.js"

needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")


def node(*arguments: str | Path, feed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NODE, *arguments], input=feed, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )


@needs_node
def test_its_logic_is_as_its_own_tests_say() -> None:
    done = node("--test", "--test-reporter=tap", HERE / "wsrelay.test.mjs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# fail 0\n" in done.stdout


TALK = """
const { readFileSync } = await import("node:fs");
const [module, url] = process.argv.slice(2);
const source = encodeURIComponent(readFileSync(module, "utf8"));
const { connect } = await import(`data:text/javascript,${source}`);
const seen = [];
const room = connect(url);
room.onState(({ state, opens, code, reason }) => seen.push({ state, opens, code, reason }));
room.sendJson({ type: "say", text: "sent before it was open" });
room.on("say", ({ text }) => { seen.push(text); room.send(new Uint8Array([0, 255])); });
room.onBinary(data => { seen.push([...new Uint8Array(data)]); room.send("news of a process"); });
room.on("news", ({ text }) => { seen.push(text); room.send("crash"); });
room.onText(text => { seen.push(text); room.send("close 4001"); });
room.onState(({ state, opens }) => { if (state === "open" && opens === 2) room.send("again"); });
room.onState(({ state }) => { if (state === "closed") console.log(JSON.stringify(seen)); });
"""


@needs_node
def test_it_works_with_the_websocket_of_node_which_then_ends_by_itself() -> None:
    found = [
        flags
        for flags in ([], ["--experimental-websocket"])
        if node(*flags, "--print", "typeof WebSocket").stdout.strip() == "function"
    ]
    if not found:
        pytest.skip("this node has no WebSocket")
    with Running(OBEDIENT) as running:
        flags = ["--no-warnings", *found[0], "--input-type=module", "-"]
        done = node(*flags, MODULE, running.ws(), feed=TALK)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [
        {"state": "connecting", "opens": 0},
        {"state": "open", "opens": 1},
        "sent before it was open",
        [0, 255],
        "of a process",
        {"state": "waiting", "opens": 1, "code": 1011, "reason": "target process crashed"},
        {"state": "connecting", "opens": 1},
        {"state": "open", "opens": 2},
        "again",
        {"state": "closed", "opens": 2, "code": 4001, "reason": "asked"},
    ]


def test_the_page_about_it_tells_all_that_it_has() -> None:
    source = MODULE.read_text()
    calls = set(re.findall(r"^  (?:get )?([a-z]\w*)\(.*\) \{$", source, re.MULTILINE))
    fields = set(re.findall(r"@property {.*} \[?(\w+)", source))
    named = (calls | fields) - {"constructor"}
    assert {"on", "sendJson", "status", "retry", "retryAt"} <= named
    page = (MODULE.parents[2] / "docs" / "browser.md").read_text()
    assert {name for name in named if not re.search(rf"`[^`]*\b{name}\b[^`]*`", page)} == set()
