"""The options of a cluster: where its NATS is, and who this node is in it."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct
from msgspec.structs import force_setattr

from wsrelay.cluster.lease import is_token
from wsrelay.node import Node
from wsrelay.node.elsewhere import Elsewhere
from wsrelay.values import durations, extras
from wsrelay.values.bounds import Bounds, InvalidOptions, wrong

__all__ = ["Cluster", "ClusterTLS", "node_name"]

_NAME_SAID: Final = "1 to 63 of A-Z a-z 0-9 _ -"

_LOCAL: Final = "local"
"""What a node is called that is in no cluster."""

_BOUNDS: Final = {
    "lease": Bounds(3, 3600, "3s to 1h"),
    "timeout": Bounds(0.1, durations.LONGEST, "100ms or more"),
}

_TEXTS: Final = ("user", "password", "token")


class ClusterTLS(Struct, frozen=True, kw_only=True):
    """How the connections to NATS are encrypted; all paths are of PEM files.

    `ca` is what the server's certificate must be signed by (None: what the system trusts), `cert`
    and `key` are this node's own, where NATS asks for them. `hostname` is the name that the
    server's certificate must have, where it is not the one in its address. With `first` encryption
    begins before the server says anything, as `handshake_first` of nats-server wants it.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    hostname: str | None = None
    first: bool = False


class _Servers(Struct, frozen=True):
    servers: Sequence[str]


class Cluster(_Servers, frozen=True, kw_only=True):
    """One cluster of nodes over an existing NATS with JetStream, and this node's name in it.

    `servers` are addresses such as `nats://127.0.0.1:4222` or `tls://nats.example.com`, in a list;
    a single one may be given as text. Servers that these know of are found by themselves. `name` is
    the prefix of all subjects and of the bucket: one for each cluster. `node` is this node's name,
    by default the machine's; both are cut at their first dot. `lease` is after how long without a
    sign of life a node is declared dead, the same for all nodes, and `timeout` how long a start
    waits for NATS; both are in seconds, or texts such as `6s`.

    A node is known to NATS by `user` and `password`, by a `token`, or by `credentials`, the path of
    a `.creds` file; or by what is in the addresses. `tls` is needed where a certificate is not one
    that the system trusts; with it, or with `tls://`, nothing is ever sent without encryption.

    Raises `InvalidOptions`, a `ValueError`, with everything that is wrong.
    """

    name: str = "wsrelay"
    node: str | None = None
    lease: float | str = 6.0
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | str | None = None
    tls: ClusterTLS | None = None
    timeout: float | str = 30.0

    def __post_init__(self) -> None:
        """Bring everything into one form, and refuse what is wrong."""
        problems: list[tuple[str, str]] = []
        self._take_servers(problems)
        self._take_node(problems)
        if not is_token(self.name):
            problems.append(("name", f"is {self.name!r:.80} and must be made of {_NAME_SAID}"))
        for option in _BOUNDS:
            try:
                force_setattr(self, option, durations.either(getattr(self, option), "is"))
            except (TypeError, ValueError) as error:
                problems.append((option, str(error)))
        if not {"lease", "timeout"} & {option for option, _ in problems}:
            problems += wrong(self, _BOUNDS)
        problems += self._wrong_identity()
        problems += self._wrong_tls()
        if problems:
            raise InvalidOptions(problems, "cluster")

    def __repr__(self) -> str:
        """Show everything but secrets."""
        shown = {
            field: "..." if field in {"password", "token"} and value is not None else value
            for field in self.__struct_fields__
            if (value := getattr(self, field)) is not None
        }
        shown["servers"] = tuple(without_secrets(server) for server in self.servers)
        return f"Cluster({', '.join(f'{field}={value!r}' for field, value in shown.items())})"

    @property
    def node_name(self) -> str:
        """The node's name, which `node` or else the machine has given."""
        return node_name() if self.node is None else self.node

    @property
    def encrypted(self) -> bool:
        """Whether nothing may be sent without encryption."""
        return self.tls is not None or any(one.startswith("tls:") for one in self.servers)

    def attach(self, node: Node) -> Elsewhere:
        """Make a node one of the cluster; `Node` calls this. Raises `InvalidOptions`."""
        if (why := _wrong_name(node.name)) is not None:
            raise InvalidOptions([("name", why)], "node")
        with extras.named():
            from .clustered import ClusteredNode  # noqa: PLC0415 - it imports NATS' client

        return ClusteredNode(node, self).elsewhere

    def _take_servers(self, problems: list[tuple[str, str]]) -> None:
        given: Any = [self.servers] if isinstance(self.servers, str) else self.servers
        if not isinstance(given, list | tuple) or not given:
            problems.append(
                ("servers", f"is {given!r:.80} and must be a list of 'nats://HOST:PORT'")
            )
            given = []
        taken = []
        for server in given:
            try:
                taken.append(_address(server))
            except ValueError as error:
                problems.append(("servers", str(error)))
        force_setattr(self, "servers", tuple(taken))

    def _take_node(self, problems: list[tuple[str, str]]) -> None:
        given = self.node
        if isinstance(given, str):
            force_setattr(self, "node", given.partition(".")[0])
        if given is None:
            try:
                node_name()
            except ValueError as error:
                problems.append(("node", str(error)))
        elif (why := _wrong_name(self.node, given)) is not None:
            problems.append(("node", why))

    def _wrong_identity(self) -> list[tuple[str, str]]:
        problems = [
            (option, f"is {'...' if option != 'user' else repr(given)[:80]} and must be text")
            for option in _TEXTS
            if (given := getattr(self, option)) is not None
            and (not isinstance(given, str) or not given)
        ]
        ways = [way for way in ("user", "token", "credentials") if getattr(self, way) is not None]
        if len(ways) > 1:
            problems.append((ways[-1], f"is given beside {' and '.join(ways[:-1])}: one is right"))
        if (self.user is None) != (self.password is None):
            missing, there = ("user", "password") if self.user is None else ("password", "user")
            problems.append((missing, f"is missing: it belongs to {there}"))
        problems += _wrong_file("credentials", self.credentials)
        return problems

    def _wrong_tls(self) -> list[tuple[str, str]]:
        tls: Any = self.tls
        if tls is None:
            return []
        if not isinstance(tls, ClusterTLS):
            return [("tls", f"is {tls!r:.80} and must be like ClusterTLS(ca='ca.pem')")]
        problems = []
        for option in ("ca", "cert", "key"):
            problems += _wrong_file(f"tls.{option}", getattr(tls, option))
        if tls.key is not None and tls.cert is None:
            problems.append(("tls.cert", "is missing: it belongs to tls.key"))
        if tls.hostname is not None and (not isinstance(tls.hostname, str) or not tls.hostname):
            problems.append(("tls.hostname", f"is {tls.hostname!r:.80} and must be a host name"))
        return problems


def node_name() -> str:
    """Return this machine's name up to its first dot; raises `ValueError` if it cannot be one."""
    host = socket.gethostname()
    name = host.partition(".")[0]
    if _wrong_name(name) is not None:
        raise ValueError(
            f"is needed: this machine's name, {host!r:.80}, is no node's ({_NAME_SAID}, and "
            f"not {_LOCAL!r})"
        )
    return name


def without_secrets(server: str) -> str:
    """Return the address of a server without the user and password or token in it."""
    parts = urlsplit(server)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _wrong_name(name: object, given: object = None) -> str | None:
    """Return why a node cannot be called that, None if it can; `given` is what it was made of."""
    given = name if given is None else given
    if not is_token(name):
        return f"is {given!r:.80} and must be made of {_NAME_SAID}"
    if name == _LOCAL:
        return f"is {_LOCAL!r}, which every node that is in no cluster is called"
    return None


def _address(server: object) -> str:
    """Return the address of a NATS server with everything that may be left out."""
    if not isinstance(server, str) or not server:
        raise ValueError(f"has {server!r:.80}, which is not text like 'nats://HOST:PORT'")
    parts = urlsplit(server if "://" in server else f"nats://{server}")
    told = f"has {_shown(parts)!r:.120}"
    if parts.scheme not in {"nats", "tls"}:
        raise ValueError(f"{told}: only nats:// and tls:// are supported")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{told}: nothing may follow the port")
    try:
        port = parts.port or 4222
    except ValueError:
        raise ValueError(f"{told}: its port is not a number from 1 to 65535") from None
    if not parts.hostname or re.search(r"\s", server):
        raise ValueError(f"{told}, which has no host name; write it like 'nats://HOST:PORT'")
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{user}{at}{host}:{port}"


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _wrong_file(option: str, given: object) -> list[tuple[str, str]]:
    if given is None:
        return []
    if not isinstance(given, str | Path):
        return [(option, f"is {given!r:.80} and must be the path of a file")]
    path = Path(given)
    if not path.is_file():
        return [(option, f"is '{path}', which {'is a folder' if path.is_dir() else 'is no file'}")]
    return []
