"""A node and a server in a thread, for a handler or an application."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

import uvicorn
from msgspec.structs import replace
from websockets.typing import Origin, Subprotocol

from wsrelay.errors import HostFailed, MissingExtra
from wsrelay.gateway.address import AddressError, Listener, bind, url
from wsrelay.gateway.protocol import RelayProtocol
from wsrelay.gateway.script import ScriptOptions, script_app
from wsrelay.gateway.server import FrontEnd, Server
from wsrelay.node import HostOptions, Node
from wsrelay.values import current, extras
from wsrelay.values.pid import PID

from .client import Client
from .log import LogCapture

__all__ = ["RelayServer", "serve"]


def serve(target: Any, *, host: HostOptions | None = None, **options: Any) -> RelayServer:
    """Return a server for a handler: text as in `wsrelay run`, or a function of the test itself.

    `options` are those of `ScriptOptions` (`scope`, `path`, `origins`, `heartbeat`,
    `room_linger`). The path of a YAML file is a configuration, which is served as by `wsrelay
    serve` except that every server listens on a free port of the loopback interface. An ASGI
    application is served as it is, including its lifespan. Those two take no options. Use the
    server as a context manager.
    """
    if isinstance(target, Path):
        target = str(target)
    if host is not None or options:
        if _is_configuration(target):
            raise TypeError("a configuration takes no options: set them in the YAML file")
        if _is_application(target):
            raise TypeError("an application takes no options: it has a node and a relay of its own")
    return RelayServer(target, host or HostOptions(stop_timeout=2.0), options)


def _is_configuration(target: Any) -> bool:
    return isinstance(target, str) and Path(target).suffix in (".yaml", ".yml")


def _is_application(target: Any) -> bool:
    """Whether it is callable as ASGI requires; a handler is called without arguments."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return False
    return _takes(signature, 3) and not _takes(signature, 0)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


class _Uvicorn(uvicorn.Server):
    """uvicorn as users run it, without its signal handlers."""

    def __init__(self, app: Any, accepting: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws=RelayProtocol,
                loop="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._accepting = accepting

    async def startup(self, sockets: Any = None) -> None:
        """Start accepting; raises `RuntimeError` if the application does not start."""
        try:
            await super().startup(sockets)
        except SystemExit:
            raise RuntimeError("the application did not start; the log says why") from None
        self._accepting()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # uvicorn's is a generator
        """Leave the signals to the tests."""
        return contextlib.nullcontext()


class RelayServer:
    """A node and a server on a free port of the loopback interface, in a thread of their own.

    `url` is `ws://host:port` and `http_url` is `http://host:port`, both without a path (`wss` and
    `https` with a certificate). If a configuration has several servers, these are the first one's;
    `urls` maps the id of each server's entry to its `url`.
    """

    def __init__(self, target: Any, host: HostOptions, options: dict[str, Any]) -> None:
        self._target = target
        self._host = host
        self._options = options
        self._clients: list[Client] = []
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._node: Node | None = None
        self._log = LogCapture()
        self._mistakes: tuple[type[Exception], ...] = (HostFailed, AddressError, MissingExtra)
        """Errors that are raised without our own lines, since they are a user's mistake."""
        self.url = ""
        self.http_url = ""
        self.urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start; raises what keeps it from starting, such as `HostFailed` or `ConfigError`."""
        __tracebackhide__ = True
        # A daemon, so that Ctrl-C ends the tests even while a handler hangs as it is loaded.
        self._thread = threading.Thread(target=self._run, name="wsrelay server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise _explained(self._failure, self._mistakes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End all clients, processes and the server; raises what prevented an orderly end."""
        for client in self._clients:
            client.close()
        with contextlib.suppress(RuntimeError):  # the server has already ended by itself
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        __tracebackhide__ = True
        if self._failure is not None and kind is None:
            raise self._failure

    def connect(
        self,
        path: str = "/ws",
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        cookies: Mapping[str, str] | None = None,
        origin: str | None = None,
        subprotocols: list[str] | None = None,
        ssl: SSLContext | None = None,
    ) -> Client:
        """Return a connected client.

        `path` may have a query, or be a whole URL: one of `urls` with a path. `headers` may be
        pairs, several of which may have the same name; `origin` is what a browser would send
        (without it, the client does not count as a browser). `ssl` is for a server with a
        certificate. The client reads in a thread, and before Python 3.13 `ssl` has no lock for
        that: set its `maximum_version` to TLS 1.2, or a message may occasionally get lost. Raises
        `websockets.InvalidStatus` if the connection is refused.
        """
        __tracebackhide__ = True
        fields = list(headers.items() if isinstance(headers, Mapping) else headers)
        if cookies:
            fields.append(("Cookie", "; ".join(f"{k}={v}" for k, v in cookies.items())))
        client = Client(
            path if "://" in path else f"{self.url}{path}",
            self._log,
            ssl=ssl,
            additional_headers=fields,
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(name) for name in subprotocols or ()] or None,
        )
        self._clients.append(client)
        return client

    @property
    def node(self) -> Node:
        """The node; raises `RuntimeError` if the application has not started one."""
        if self._node is None:  # of an application, whose lifespan or first request starts it
            mine = [n for n in current.nodes if isinstance(n, Node) and n not in self._others]
            if not mine:
                raise RuntimeError(
                    "the application started no node: is it wrapped by WebSocketRelay?"
                )
            self._node = mine[0]
        return self._node

    @property
    def workers(self) -> dict[PID, int | None]:
        """The living processes, with their process ids in the operating system."""
        workers: dict[PID, int | None] = self._call(lambda: self.node.workers)
        return workers

    def kill(self, pid: str) -> None:
        """End a process at once, to see how its clients react."""
        self.node.terminate(pid)

    def _call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _run(self) -> None:
        logger = logging.getLogger("wsrelay")
        self._log.thread = threading.get_ident()
        logger.addHandler(self._log)
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failure = error
        finally:
            logger.removeHandler(self._log)
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if _is_configuration(self._target):
            await self._serve_configuration()
            return
        with contextlib.closing(bind("127.0.0.1", 0)) as listener:
            self._listens(url(listener))
            if _is_application(self._target):
                await self._serve_application(listener)
            else:
                await self._serve_handler(listener)

    def _listens(self, place: str) -> None:
        self.http_url, self.url = place, _websocket(place)

    async def _serve_configuration(self) -> None:
        with extras.named():
            from wsrelay.config import Address, ConfigError  # noqa: PLC0415 - it needs the extra
            from wsrelay.gateway import assembly  # noqa: PLC0415
            from wsrelay.gateway.deployment import Deployment  # noqa: PLC0415
        self._mistakes += (ConfigError, assembly.AssemblyError)
        configuration = assembly.load([Path(self._target)])
        if not configuration.servers:
            raise RuntimeError(f"{self._target} has no http.service entry: nothing to serve")
        moved = {
            name: server.model_copy(update={"addr": Address("127.0.0.1", 0)})
            for name, server in configuration.servers.items()
        }
        entries = {**configuration.entries, **moved}
        deployment = Deployment(replace(configuration, entries=entries))
        places = {entry: url(listener, tls=tls) for entry, listener, tls in deployment.addresses}
        self.urls = {entry: _websocket(place) for entry, place in places.items()}
        self._listens(next(iter(places.values())))
        self._node, self._stop = deployment.node, deployment.stop
        await deployment.run(self._started.set)

    async def _serve_handler(self, listener: Listener) -> None:
        named = isinstance(self._target, str)
        targets = (self._target,) if named else ()
        host = self._host
        fields = {name: getattr(host, name) for name in host.__struct_fields__}
        node = Node(hosts=[HostOptions(**{**fields, "targets": (*host.targets, *targets)})])
        options = ScriptOptions(target=self._target, **self._options)
        front = FrontEnd(node)
        self._node, self._stop = node, front.stop
        app = script_app(node, options)
        server = Server(app, listener, buffered=node.buffered, numbers=node.numbers)
        await front.run([server], self._started.set)

    async def _serve_application(self, listener: Listener) -> None:
        def stop() -> None:
            server.should_exit = True

        self._others = list(current.nodes)
        server = _Uvicorn(self._target, self._started.set)
        self._stop = stop
        await server.serve([*listener.sockets])


def _websocket(place: str) -> str:
    return place.replace("http", "ws", 1)


def _explained(error: BaseException, mistakes: tuple[type[Exception], ...]) -> BaseException:
    """Return what to raise in the test; a user's mistake is shown without our own lines."""
    if not isinstance(error, mistakes):
        return error
    if details := getattr(error, "details", ""):
        error.add_note(details.rstrip())
    return error.with_traceback(None)
