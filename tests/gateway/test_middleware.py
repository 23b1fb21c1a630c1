"""The middleware that a configuration names, over real sockets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import rooms
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from support import client, received, room, serving
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse
from wsrelay.gateway import middleware
from wsrelay.gateway.address import bind_unix
from wsrelay.gateway.middleware.ratelimit import Buckets
from wsrelay.gateway.server import Server, ServerOptions

pytestmark = pytest.mark.anyio


def application(node: Node) -> Starlette:
    def connect(_: Request) -> Response:
        return RelayResponse(node.spawn(room(rooms.echo)), cancel_on_leave=True)

    def who(request: Request) -> Response:
        token = getattr(request.state, "token", None)
        host = request.client.host if request.client else None
        return JSONResponse({"client": host, "scheme": request.url.scheme, "token": token})

    def long(_: Request) -> Response:
        return PlainTextResponse("x" * 2000)

    routes = [Route("/ws", connect), Route("/who", who), Route("/long", long)]
    return Starlette(routes=routes)


@contextlib.asynccontextmanager
async def site(node: Node, *names: str, **options: Any) -> AsyncIterator[tuple[str, Any]]:
    """Serve with middleware and the relay inside; gives the WebSocket's URL and an HTTP client."""
    plain = {name.replace("__", "."): value for name, value in options.items()}
    app = middleware.wrap(application(node), [*names, "websocket_relay"], plain, node)
    async with serving(app, proxy_headers=False) as url:
        base = url.replace("ws", "http", 1)
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
            yield f"{url}/ws", http


async def refused(url: str, **options: Any) -> Any:
    with pytest.raises(InvalidStatus) as raised:
        async with client(url, **options):
            pass
    return raised.value.response


async def echoes(url: str, **options: Any) -> None:
    async with client(url, **options) as one:
        await one.send("hello")
        assert await received(one) == "hello"


# ratelimit


async def test_who_asks_too_often_gets_429_and_nothing_is_spawned(node: Node) -> None:
    limits = {"ratelimit__requests": 2, "ratelimit__interval": "1h"}
    async with site(node, "ratelimit", **limits) as (url, http):
        await echoes(url)
        assert (await http.get("/who")).status_code == 200
        answer = await http.get("/who")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) in (1799, 1800)
        spawned = len(node.workers)
        assert (await refused(url)).status_code == 429
        assert len(node.workers) <= spawned


async def test_clients_may_be_told_apart_by_a_header_or_a_query_key(node: Node) -> None:
    for key in ("header:X-Key", "query:key"):
        limits = {"ratelimit__requests": 1, "ratelimit__interval": "1h", "ratelimit__key": key}
        async with site(node, "ratelimit", **limits) as (_, http):
            asks: list[dict[str, Any]] = [
                {"headers": {"X-Key": name}, "params": {"key": name}} for name in "aab"
            ]
            codes = [(await http.get("/who", **ask)).status_code for ask in asks]
            assert codes == [200, 429, 200]


async def test_a_key_that_is_given_twice_is_none_so_that_nobody_forges_a_bucket(node: Node) -> None:
    for key in ("header:X-Key", "query:key"):
        limits = {"ratelimit__requests": 1, "ratelimit__interval": "1h", "ratelimit__key": key}
        async with site(node, "ratelimit", **limits) as (_, http):
            codes = []
            for forged in "ab":
                pairs = [("X-Key", forged), ("X-Key", "mine")]
                query = [("key", forged), ("key", "mine")]
                answer = await http.get("/who", headers=pairs, params=query)
                codes.append(answer.status_code)
            assert codes == [200, 429]


@given(
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 10), min_size=1, max_size=60),
)
def test_no_more_pass_than_the_burst_and_the_rate_let(
    rate: float, burst: int, gaps: list[float]
) -> None:
    buckets, now, passed = Buckets(rate, burst, 10), 0.0, 0
    for gap in gaps:
        now += gap
        passed += buckets.take("x", now) == 0
    assert passed <= burst + rate * now + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 5), st.integers(1, 40))
def test_waiting_as_long_as_was_said_is_enough(rate: float, burst: int, asks: int) -> None:
    buckets = Buckets(rate, burst, 10)
    now = 0.0
    for _ in range(asks):
        now += buckets.take("x", now)
        # What was just taken, or is there now.
    wait = buckets.take("x", now)
    assert wait == 0 or buckets.take("x", now + wait) == 0


def test_the_keys_that_were_not_used_for_longest_are_forgotten() -> None:
    buckets = Buckets(0.001, 1, 2)
    for key in "abac":
        buckets.take(key, 0.0)
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0


V6, BESIDE, OTHER = "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"
MAPPED = ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2:9", "::ffff:192.0.2.2"]
FORWARDED = [
    ([V6, BESIDE, "[2001:db8::3]:4000", OTHER], [200, 429, 429, 200]),
    (MAPPED, [200, 429] * 2),
]


@pytest.mark.parametrize(("clients", "codes"), FORWARDED, ids=["by its /64", "IPv4 in IPv6"])
async def test_an_ipv6_client_has_one_limit_whatever_address_of_its_64_it_takes(
    node: Node, clients: list[str], codes: list[int]
) -> None:
    limits = {"ratelimit__requests": 1, "ratelimit__interval": "1h"}
    proxy = {"real_ip__trusted": "127.0.0.1"}
    async with site(node, "real_ip", "ratelimit", **limits, **proxy) as (_, http):
        answers = [await http.get("/who", headers={"X-Forwarded-For": one}) for one in clients]
        assert [answer.status_code for answer in answers] == codes


async def test_a_limit_by_address_is_not_evaded_by_headers(node: Node) -> None:
    limits = {"ratelimit__requests": 1, "ratelimit__interval": "1h"}
    async with site(node, "ratelimit", **limits) as (_, http):
        codes = []
        for number in range(3):
            varied = {"X-Forwarded-For": f"10.0.0.{number}", "X-Key": str(number)}
            codes.append((await http.get("/who", headers=varied)).status_code)
        assert codes == [200, 429, 429]


async def test_keys_made_up_push_no_bucket_out_and_the_address_counts_beyond_them(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {
        "ratelimit__requests": 1,
        "ratelimit__interval": "1h",
        "ratelimit__key": "header:X-Key",
        "ratelimit__max__keys": 2,
    }
    async with site(node, "ratelimit", **limits) as (_, http):
        names = ["mine", "b", "c", "d", "mine"]
        answers = [await http.get("/who", headers={"X-Key": name}) for name in names]
        assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
        assert (await http.get("/who")).status_code == 429, "c took what the address has"
    assert "127.0.0.1: its address counts instead of its header X-Key" in caplog.text
    assert "ratelimit.max.keys" in caplog.text


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(1, 3))
def test_there_are_never_more_buckets_than_keys_are_kept(keys: str, most: int) -> None:
    buckets = Buckets(1.0, 1, most)
    for now, key in enumerate(keys):
        buckets.take(key, now / 10)
    assert len(buckets) <= most


def test_a_bucket_that_is_full_again_makes_room_for_another() -> None:
    buckets = Buckets(1.0, 2, 1)
    buckets.take("a", 0.0)
    assert not buckets.has_room("b", 0.5)
    assert buckets.has_room("a", 0.5)
    assert buckets.has_room("b", 1.0)


# real_ip


async def test_forwarded_addresses_count_from_trusted_peers_alone(node: Node) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with site(node, "real_ip", real_ip__trusted="127.0.0.0/8") as (_, http):
        answer = (await http.get("/who", headers=headers)).json()
        assert (answer["client"], answer["scheme"]) == ("203.0.113.7", "https")
    async with site(node, "real_ip", real_ip__trusted=["10.0.0.0/8"]) as (_, http):
        answer = (await http.get("/who", headers=headers)).json()
        assert (answer["client"], answer["scheme"]) == ("127.0.0.1", "http")


async def test_a_proxy_on_a_unix_socket_counts_where_unix_is_trusted(
    node: Node, tmp_path: Path
) -> None:
    path = str(tmp_path / "site.sock")
    limits = {"ratelimit.requests": 1, "ratelimit.interval": "1h"}

    async def asked(trusted: str, *clients: str) -> list[Any]:
        names = ["real_ip", "ratelimit", "websocket_relay"]
        options = {"real_ip.trusted": trusted, **limits}
        app = middleware.wrap(application(node), names, options, node)
        server = Server(app, bind_unix(Path(path)), ServerOptions())
        await server.start()
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(base_url="http://site", transport=transport) as http:
            answers = []
            for name in clients:
                forwarded = {"X-Forwarded-For": f"9.9.9.9, {name}", "X-Forwarded-Proto": "https"}
                answer = await http.get("/who", headers=forwarded if name else {})
                ok = answer.status_code == 200
                answers.append(answer.json() if ok else answer.status_code)
        server.stop_accepting()
        await server.aclose()
        return [a if isinstance(a, int) else (a["client"], a["scheme"]) for a in answers]

    one, two = "203.0.113.1", "203.0.113.2"
    for trusted in ("unix", "10.0.0.0/8, unix"):
        assert await asked(trusted, one, two, one) == [(one, "https"), (two, "https"), 429]
        assert await asked(trusted, "") == [(None, "http")]
    assert await asked("10.0.0.0/8", one, two) == [(None, "http"), 429]


async def test_a_peer_over_tcp_is_not_trusted_as_one_on_a_unix_socket(node: Node) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7"}
    async with site(node, "real_ip", real_ip__trusted="unix") as (_, http):
        assert (await http.get("/who", headers=headers)).json()["client"] == "127.0.0.1"


async def test_the_first_name_is_the_outermost(node: Node) -> None:
    options = {
        "real_ip__trusted": "127.0.0.1",
        "ratelimit__requests": 1,
        "ratelimit__interval": "1h",
    }
    asks = [{"X-Forwarded-For": f"203.0.113.{i}"} for i in range(2)]
    async with site(node, "real_ip", "ratelimit", **options) as (_, http):
        assert [(await http.get("/who", headers=h)).status_code for h in asks] == [200, 200]
    async with site(node, "ratelimit", "real_ip", **options) as (_, http):
        assert [(await http.get("/who", headers=h)).status_code for h in asks] == [200, 429]


# token_auth


async def test_a_token_comes_by_header_query_or_cookie(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "token_auth__secret": "hush-hush",
        "token_auth__query": "token",
        "token_auth__cookie": "token",
    }
    caplog.set_level(logging.DEBUG, logger="wsrelay")
    async with site(node, "token_auth", **options) as (url, http):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "hush-hush"}):
            answer = await http.get("/who", headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await refused(url)).status_code == 401
        assert (await refused(f"{url}?token=wrong")).status_code == 401
        assert len(node.workers) == 0
        await echoes(url, additional_headers={"Authorization": "Bearer hush-hush"})
        await echoes(f"{url}?token=hush-hush")
        await echoes(url, additional_headers={"Cookie": "token=hush-hush"})
    assert "hush-hush" not in caplog.text
    assert "none of the subprotocols" not in caplog.text, "token_auth has selected one"


@pytest.mark.parametrize(
    "order", [["token_auth", "websocket_relay"], ["websocket_relay", "token_auth"]]
)
async def test_a_token_comes_by_subprotocol_and_is_never_the_selected_one(
    node: Node, caplog: pytest.LogCaptureFixture, order: list[str]
) -> None:
    seen: list[Any] = []

    def connect(request: Request) -> Response:
        seen[:] = request.scope["subprotocols"]
        chosen = "chat.v2" if "chat.v2" in seen else None
        pid = node.spawn(room(rooms.echo))
        return RelayResponse(pid, cancel_on_leave=True, subprotocol=chosen)

    options = {"token_auth.secret": "hush-hush", "token_auth.subprotocol": "bearer."}
    routes = [Route("/ws", connect)]
    app = middleware.wrap(Starlette(routes=routes), order, options, node)
    caplog.set_level(logging.DEBUG, logger="wsrelay")
    async with serving(app, proxy_headers=False) as url:

        async def selected(*offer: str) -> str | None:
            async with client(f"{url}/ws", subprotocols=list(offer)) as one:
                assert not any("hush" in name for name in seen)
                return one.subprotocol

        # What the endpoint selects; where it selects none, the first that is no token.
        assert await selected("bearer.hush-hush", "chat.v1", "chat.v2") == "chat.v2"
        assert await selected("bearer.hush-hush", "chat.v1", "chat.v3") == "chat.v1"
        assert seen == ["chat.v1", "chat.v3"]
        for offer, status in (
            (["chat.v1"], 401),
            (["chat.v1", "bearer.wrong"], 401),
            (["hush-hush"], 401),
            (["bearer.hush-hush"], 400),
        ):
            answer = await refused(f"{url}/ws", subprotocols=offer)
            assert answer.status_code == status
    assert 'must also offer one that can be selected, as in ["chat", "bearer.TOKEN"]' in caplog.text
    assert "hush-hush" not in caplog.text


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_function_judges_tokens_and_its_claims_are_in_the_state(
    node: Node, tmp_path: Path, kind: str
) -> None:
    script = tmp_path / f"judge_{kind[0]}.py"
    script.write_text(
        f"{kind} judge(token):\n"
        "    if token == 'bad': raise ValueError('a bad day')\n"
        "    return {'user': token} if token.startswith('a') else None\n"
    )
    function = f"{script}:judge"
    async with site(node, "token_auth", token_auth__function=function) as (_, http):

        async def ask(token: str) -> httpx.Response:
            answer: httpx.Response = await http.get(
                "/who", headers={"Authorization": f"Bearer {token}"}
            )
            return answer

        assert (await ask("ada")).json()["token"] == {"user": "ada"}
        assert (await ask("bob")).status_code == 401
        answer = await ask("bad")
        assert (answer.status_code, "bad day" in answer.text) == (500, False)


# cors and compress


async def test_cors_answers_preflight_requests_and_leaves_websockets_alone(node: Node) -> None:
    origin = {"Origin": "https://app.example.com"}
    options = {"cors__allow__origins": "https://app.example.com"}
    async with site(node, "cors", **options) as (url, http):
        asked = {**origin, "Access-Control-Request-Method": "GET"}
        answer = await http.options("/who", headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        answer = await http.get("/who", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        await echoes(url)


async def test_long_responses_are_compressed(node: Node) -> None:
    async with site(node, "compress", compress__minimum__size="1KB") as (url, http):
        assert (await http.get("/long")).headers["content-encoding"] == "gzip"
        assert "content-encoding" not in (await http.get("/who")).headers
        await echoes(url)


# The relay's own


async def test_the_relay_s_options_are_its_own(node: Node) -> None:
    options = {"wsrelay__allowed__origins": "https://app.example.com"}
    async with site(node, **options) as (url, _):
        await echoes(url, origin="https://app.example.com")
        assert (await refused(url, origin="https://evil.example")).status_code == 403


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["cros"], {}, [("cros", "there is no middleware 'cros'; did you mean 'cors'?")]),
        (["cors", "cors"], {}, [("cors", "middleware 'cors' is named twice")]),
        (["ratelimit"], {}, [("ratelimit.requests", "is missing")]),
        (
            ["ratelimit"],
            {"ratelimit.requests": "9"},
            [("ratelimit.requests", "must be a whole number, not '9'")],
        ),
        (
            ["ratelimit"],
            {"ratelimit.requests": 9, "ratelimit.key": "cookie:x"},
            [("ratelimit.key", "must be one of ip, header:NAME, query:NAME, not 'cookie:x'")],
        ),
        (
            ["ratelimit"],
            {"ratelimit.requests": 9, "ratelimit.interval": "0s"},
            [("ratelimit.interval", "must be longer than 0s")],
        ),
        (
            ["real_ip"],
            {"real_ip.trusted": "10.0.0.1/8"},
            [
                (
                    "real_ip.trusted",
                    (
                        "'10.0.0.1/8' is neither a subnet like '10.0.0.0/8' nor 'unix': "
                        "10.0.0.1/8 has host bits set"
                    ),
                )
            ],
        ),
        (
            ["token_auth"],
            {},
            [
                (
                    "token_auth",
                    "token_auth needs either token_auth.secret or token_auth.function",
                )
            ],
        ),
        (
            ["token_auth"],
            {"token_auth.secret": "a b", "token_auth.subprotocol": "bearer."},
            [
                (
                    "token_auth",
                    (
                        "token_auth.secret cannot be part of a subprotocol, which may only have "
                        "letters, digits and !#$%&'*+-.^_`|~"
                    ),
                )
            ],
        ),
        (
            ["websocket_relay"],
            {"wsrelay.allowed.origins": "example.com"},
            [("wsrelay.allowed.origins", None)],
        ),
    ],
)
async def test_what_is_wrong_is_told_with_its_key(
    node: Node, names: list[str], options: dict[str, Any], expected: list[tuple[str, str | None]]
) -> None:
    problems = middleware.check(names, options)
    shown = [
        (key, message if wanted is not None else None)
        for (key, message), (_, wanted) in zip(problems, expected, strict=True)
    ]
    assert shown == expected
    with pytest.raises(ValueError, match=problems[0][0]):
        middleware.wrap(application(node), names, options, node)
