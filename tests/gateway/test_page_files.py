"""`/wsrelay.js` and `/wsrelay.css` of `run` and `serve`: ours, unless the user has such a file."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import rooms
from running import HANDLERS
from support import room

from wsrelay import Node
from wsrelay.gateway import assembly, script
from wsrelay.gateway.script import ScriptOptions, script_app
from wsrelay.relay.asgi import App

pytestmark = pytest.mark.anyio

THEIRS = "of the user"
OURS = {"wsrelay.js": "export function connect(", "wsrelay.css": "color-scheme: light dark;"}

SERVER = """
version: "1.0"
namespace: app
entries:
  - {name: gateway, kind: http.service, addr: "127.0.0.1:0"}
"""
FOLDER = """
  - {{name: {0}, kind: http.static, meta: {{server: gateway}}, path: {1}, directory: {0}}}
"""
ENDPOINT = """
  - {{name: module, kind: function.python, source: "file://web.py", method: module}}
  - {{name: router, kind: http.router, meta: {{server: gateway}}}}
  - {{name: route, kind: http.endpoint, meta: {{router: router}}, path: /{0}, func: module}}
"""


async def text(app: App, path: str) -> str:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        return (await client.get(path)).text


def run(**options: object) -> App:
    given = ScriptOptions(target=room(rooms.echo), **options)  # type: ignore[arg-type]
    return script_app(Node(), given)


def serve(folder: Path, *entries: str) -> App:
    (folder / "app.yaml").write_text(SERVER + "".join(entries))
    configuration = assembly.load([folder / "app.yaml"])
    [server] = configuration.servers.values()
    return assembly.application(configuration, server, Node(), lambda: "")


@pytest.fixture(params=OURS)
def name(request: pytest.FixtureRequest) -> str:
    file: str = request.param
    return file


async def test_run_has_it_beside_its_page_and_beside_a_folder_without_such_a_file(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "index.html").write_text("<p>hello")
    assert OURS[name] in await text(run(), f"/{name}")
    with_folder = run(static=tmp_path)
    assert OURS[name] in await text(with_folder, f"/{name}")
    assert await text(with_folder, "/") == "<p>hello"


async def test_run_leaves_it_to_a_folder_that_has_it_even_if_it_comes_later(
    tmp_path: Path, name: str
) -> None:
    app = run(static=tmp_path)
    assert OURS[name] in await text(app, f"/{name}")
    (tmp_path / name).write_text(THEIRS)
    assert await text(app, f"/{name}") == THEIRS
    others = OURS.keys() - {name}
    assert [OURS[other] in await text(app, f"/{other}") for other in others] == [True]


async def test_with_all_paths_for_clients_it_is_one_of_them(name: str) -> None:
    assert (await text(run(path="/"), f"/{name}")).startswith("Upgrade Required")


async def test_serve_has_it_with_and_without_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / "public").mkdir()
    for entries in ([], [FOLDER.format("public", "/")], [FOLDER.format("public", "/a")]):
        assert OURS[name] in await text(serve(tmp_path, *entries), f"/{name}")


async def test_serve_leaves_it_to_a_folder_that_has_it(tmp_path: Path, name: str) -> None:
    for folder in ("public", "deep"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(THEIRS)
    assert await text(serve(tmp_path, FOLDER.format("public", "/")), f"/{name}") == THEIRS
    deep = serve(tmp_path, FOLDER.format("deep", "/deep"))
    assert OURS[name] in await text(deep, f"/{name}")
    assert await text(deep, f"/deep/{name}") == THEIRS


async def test_serve_leaves_it_to_an_endpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "web.py").write_text(f"def module(request):\n    return {THEIRS!r}\n")
    assert await text(serve(tmp_path, ENDPOINT.format(name)), f"/{name}") == THEIRS


def test_every_page_of_ours_connects_by_it() -> None:
    pages = [*HANDLERS.glob("pages/*/index.html"), Path(script.__file__).with_name("page.html")]
    assert len(pages) > 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert 'import { connect } from "./wsrelay.js";' in text, page
        assert "new WebSocket(" not in text, page
