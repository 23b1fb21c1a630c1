"""The kinds of entries and their keys (`docs/configuration.md`).

Once loaded, references are full ids, paths absolute, durations seconds and sizes bytes. The
bounds of values are told by what the entries become, `HostOptions` and the like, and not here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

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
    "PythonProcess",
    "RouterEntry",
    "ServerEntry",
    "ServiceEntry",
    "Static",
]

KB: Final = 1024
MB: Final = 1024 * 1024


class Model(BaseModel):
    """Knows all its keys, and takes no text for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ConfigEntry(Model):
    """What all entries have. `references` maps keys to the kind that they, or their items, name."""

    references: ClassVar[dict[tuple[str, ...], str]] = {}

    id: str
    name: str
    kind: str


class HostLimits(Model):
    """What each worker may use: memory in bytes, CPU time in seconds; None: as the node may.

    `cpus`, `memory_total` and `processes_total` are for the host as a whole.
    """

    memory: Size | None = None
    cpu_time: Duration | None = None
    open_files: int | None = None
    processes: int | None = None
    cpus: float | None = None
    memory_total: Size | None = None
    processes_total: int | None = None
    mailbox: Size = 64 * MB
    log_rate: float = 500.0


class HostFilesystem(Model):
    """Files and folders that workers may read, and those that they may write too."""

    read: list[AnyPath] = []
    write: list[AnyPath] = []


class Host(ConfigEntry):
    """`process.host`."""

    references = {("may_spawn",): "process.host", ("may_control",): "process.host"}

    preload: list[ModuleName] = []
    max_processes: int = 256
    warm: int = 0
    start_timeout: Duration = 10.0
    stop_timeout: Duration = 10.0
    spawn_rate: float = 1000.0
    limits: HostLimits = HostLimits()
    nice: int | None = None
    user: UserName | None = None
    group: UserName | None = None
    umask: Umask | None = None
    working_directory: Folder | None = None
    environment: list[str] | None = None
    filesystem: HostFilesystem | None = None
    network: Literal["host", "none"] = "host"
    no_new_privs: bool = False
    core_dumps: bool = False
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
    """`process.python`: what a worker runs; `host` is where it is spawned by default."""

    references = {("host",): "process.host"}

    host: str | None = None


class Function(_Code):
    """`function.python`: what the node runs for an endpoint."""


class TLS(Model):
    """Certificate chain and key, both PEM files."""

    cert: SecretFile
    key: SecretFile


class Timeouts(Model):
    """Seconds; those of HTTP bodies and responses are without any progress."""

    keep_alive: Duration = 5.0
    header: Duration = 10.0
    message: Duration = 120.0
    body: Duration = 60.0
    response: Duration = 60.0
    ping_interval: Duration = 20.0
    ping_timeout: Duration = 20.0
    drain: Duration = 5.0


class _Wrapped(ConfigEntry):
    middleware: list[str] = []
    options: dict[str, Any] = {}


class ServerEntry(_Wrapped):
    """`http.service`; with `health`, it answers `/healthz` and `/readyz`."""

    addr: AddressText
    allowed_hosts: HostNames = "*"
    max_message_size: Size = 16 * MB
    max_head_size: Size = 64 * KB
    max_connections: int = 10_000
    max_connections_per_ip: int = 1_000
    max_buffered: Size = 256 * MB
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
    """`http.router`: `middleware` sees all under its prefix, `post_middleware` what matched."""

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


class Restart(Model):
    """Exponential backoff: delays in seconds, `jitter` a share of them, 0 attempts: for ever."""

    initial_delay: Duration = 1.0
    max_delay: Duration = 90.0
    backoff_factor: float = 2.0
    jitter: float = 0.1
    max_attempts: int = 0


class Lifecycle(Model):
    """When a service is started, and started again."""

    auto_start: bool = True
    stable_threshold: Duration = 5.0
    restart: Restart = Restart()


class ServiceEntry(ConfigEntry):
    """`process.service`: a process that is kept running under the entry's id."""

    references = {("process",): "process.python", ("host",): "process.host"}

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
    "http.static": Static,
}
