"""The kinds of entries and their keys (`docs/configuration.md`).

Once loaded, references are full ids, paths absolute, durations seconds and sizes bytes. Defaults
and bounds are those of what an entry becomes (`Model.build`): `HostOptions`, `Service`,
`ServerOptions`. Here are the keys, and how their values are written;
`tests/config/test_options.py` checks that none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, model_validator

from wsrelay.confinement import HostOptions
from wsrelay.node.supervisor import RestartPolicy, Scope, Service
from wsrelay.values.server_options import ServerOptions

from .values import (
    Address,
    AddressText,
    AnyPath,
    Duration,
    Folder,
    HostNames,
    HTTPPath,
    Identifier,
    Methods,
    ModuleName,
    Script,
    SecretFile,
    Size,
    Umask,
    UserName,
)

__all__ = [
    "KINDS",
    "Address",
    "ConfigEntry",
    "EndpointEntry",
    "Function",
    "Host",
    "MetricsEntry",
    "PythonProcess",
    "RouterEntry",
    "ServerEntry",
    "ServiceEntry",
    "Static",
]

_HOST: Final = HostOptions()
_RESTART: Final = RestartPolicy()
_SERVER: Final = ServerOptions()
_SERVICE: Final = Service(name="defaults", target="")

S = TypeVar("S", bound=Struct)


class Model(BaseModel):
    """A mapping that refuses unknown keys, and text where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    elsewhere: ClassVar[Mapping[str, str | None]] = {}
    """Options that are not under a key of their own name, with their dotted key; None: no key."""

    def build(self, definition: type[S], **given: Any) -> S:
        """Return the options of a definition: those that are `given`, the others from their keys.

        Raises `InvalidOptions`, with the options' names; `key_of` says where they are.
        """
        for name in definition.__struct_fields__:
            if name not in given and (key := self.key_of(name)) is not None:
                given[name] = self._value(key)
        return definition(**given)

    @classmethod
    def key_of(cls, option: str) -> str | None:
        """Return the dotted key of an option, or None if it cannot be configured."""
        return cls.elsewhere.get(option, option)

    def _value(self, key: str) -> Any:
        value: Any = self
        for part in key.split("."):
            value = None if value is None else getattr(value, part)
        return tuple(value) if isinstance(value, list) else value


class ConfigEntry(Model):
    """What all entries have.

    `references` maps keys to the kind of the entry that they, or their items, refer to.
    """

    references: ClassVar[dict[tuple[str, ...], str]] = {}

    id: str
    name: str
    kind: str


class HostLimits(Model):
    """`Limits`, and the two of `HostOptions` that also bound what a worker uses."""

    memory: Size | None = None
    cpu_time: Duration | None = None
    open_files: int | None = None
    processes: int | None = None
    cpus: float | None = None
    memory_total: Size | None = None
    processes_total: int | None = None
    mailbox: Size = _HOST.mailbox
    log_rate: float = _HOST.log_rate


class HostFilesystem(Model):
    """`Filesystem`: files and folders that workers may read, and those that they may also write."""

    read: list[AnyPath] = []
    write: list[AnyPath] = []


class Host(ConfigEntry):
    """`process.host`: `HostOptions` with its `Limits` and its `Isolation`."""

    references = {("may_spawn",): "process.host", ("may_control",): "process.host"}
    elsewhere = {
        "mailbox": "limits.mailbox",
        "log_rate": "limits.log_rate",
        # Of `wsrelay run`, whose script is the only one.
        "arguments": None,
        "raw_output": None,
    }

    preload: list[ModuleName] = []
    max_processes: int = _HOST.max_processes
    warm: int = _HOST.warm
    start_timeout: Duration = _HOST.start_timeout
    stop_timeout: Duration = _HOST.stop_timeout
    stall: Duration | None = None
    stall_action: Literal["log", "terminate"] = _HOST.stall_action
    spawn_rate: float = _HOST.spawn_rate
    limits: HostLimits = HostLimits()
    nice: int | None = None
    user: UserName | None = None
    group: UserName | None = None
    umask: Umask | None = None
    working_directory: Folder | None = None
    environment: list[str] | None = None
    filesystem: HostFilesystem | None = None
    network: Literal["host", "none"] = "host"
    no_new_privs: bool = _HOST.isolation.no_new_privs
    core_dumps: bool = _HOST.isolation.core_dumps
    may_spawn: list[str] = []
    may_control: list[str] = []
    may_name: list[str] = []


class _Code(ConfigEntry):
    """A function in a script or in a module."""

    source: Script | None = None
    module: ModuleName | None = None
    method: Identifier = "handler"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.source is None) is (self.module is None):
            raise ValueError("needs either 'source' (file://path.py) or 'module'")
        return self

    @property
    def target(self) -> str:
        """The function as a spawn target."""
        return f"{self.source or self.module}:{self.method}"


class PythonProcess(_Code):
    """`process.python`: what a worker runs; `host` is the default one to spawn it in."""

    references = {("host",): "process.host"}

    host: str | None = None


class Function(_Code):
    """`function.python`: what the node runs for an endpoint."""


class TLS(Model):
    """Certificate chain and key, both PEM files."""

    cert: SecretFile
    key: SecretFile


class Timeouts(Model):
    """Seconds, as in `ServerOptions`; `drain` is that of `FrontEnd`."""

    keep_alive: Duration = _SERVER.keep_alive
    header: Duration = _SERVER.header_timeout
    message: Duration = _SERVER.message_timeout
    body: Duration = _SERVER.body_timeout
    response: Duration = _SERVER.response_timeout
    ping_interval: Duration = _SERVER.ping_interval
    ping_timeout: Duration = _SERVER.ping_timeout
    drain: Duration = 5.0


class _Wrapped(ConfigEntry):
    middleware: list[str] = []
    options: dict[str, Any] = {}


class ServerEntry(_Wrapped):
    """`http.service`: `ServerOptions`, an address and an application.

    With `health`, the latter answers `/healthz` and `/readyz`.
    """

    elsewhere = {
        "header_timeout": "timeouts.header",
        "message_timeout": "timeouts.message",
        "body_timeout": "timeouts.body",
        "response_timeout": "timeouts.response",
        "keep_alive": "timeouts.keep_alive",
        "ping_interval": "timeouts.ping_interval",
        "ping_timeout": "timeouts.ping_timeout",
        "cert": "tls.cert",
        "key": "tls.key",
    }

    addr: AddressText
    allowed_hosts: HostNames = "*"
    max_message_size: Size = _SERVER.max_message_size
    max_head_size: Size = _SERVER.max_head_size
    max_connections: int = _SERVER.max_connections
    max_connections_per_ip: int = _SERVER.max_connections_per_ip
    max_buffered: Size = _SERVER.max_buffered
    tls: TLS | None = None
    timeouts: Timeouts = Timeouts()
    health: bool = True


class OfServer(Model):
    """Names the server that something belongs to."""

    server: str


class OfRouter(Model):
    """Names the router that something belongs to."""

    router: str


class RouterEntry(_Wrapped):
    """`http.router`: `middleware` sees all below the prefix, `post_middleware` what has matched."""

    references = {("meta", "server"): "http.service"}

    meta: OfServer
    prefix: HTTPPath = "/"
    post_middleware: list[str] = []
    post_options: dict[str, Any] = {}


class EndpointEntry(ConfigEntry):
    """`http.endpoint`; `path` as in Starlette, below the router's prefix."""

    references = {("meta", "router"): "http.router", ("func",): "function.python"}

    meta: OfRouter
    method: Methods = ["GET"]
    path: HTTPPath
    func: str


class Static(ConfigEntry):
    """`http.static`: a folder of files; `index.html` answers for its folder."""

    references = {("meta", "server"): "http.service"}

    meta: OfServer
    path: HTTPPath = "/"
    directory: Folder


class MetricsEntry(ConfigEntry):
    """`http.metrics`: the node's metrics for Prometheus."""

    references = {("meta", "server"): "http.service"}

    meta: OfServer
    path: HTTPPath = "/metrics"


class Restart(Model):
    """`RestartPolicy`."""

    initial_delay: Duration = _RESTART.initial_delay
    max_delay: Duration = _RESTART.max_delay
    backoff_factor: float = _RESTART.backoff_factor
    jitter: float = _RESTART.jitter
    max_attempts: int = _RESTART.max_attempts


class Lifecycle(Model):
    """When and where a service is started, and started again."""

    scope: Scope = _SERVICE.scope
    auto_start: bool = _SERVICE.auto_start
    stable_threshold: Duration = _SERVICE.stable_threshold
    restart: Restart = Restart()


class ServiceEntry(ConfigEntry):
    """`process.service`: `Service`, a process that is kept running under the entry's id."""

    references = {("process",): "process.python", ("host",): "process.host"}
    elsewhere = {
        "target": "process",
        "scope": "lifecycle.scope",
        "auto_start": "lifecycle.auto_start",
        "stable_threshold": "lifecycle.stable_threshold",
        **{name: f"lifecycle.restart.{name}" for name in RestartPolicy.__struct_fields__},
    }

    process: str
    host: str | None = None
    args: list[Any] = []
    lifecycle: Lifecycle = Lifecycle()


KINDS: Final[dict[str, type[ConfigEntry]]] = {
    "process.host": Host,
    "process.python": PythonProcess,
    "process.service": ServiceEntry,
    "function.python": Function,
    "http.service": ServerEntry,
    "http.router": RouterEntry,
    "http.endpoint": EndpointEntry,
    "http.metrics": MetricsEntry,
    "http.static": Static,
}
