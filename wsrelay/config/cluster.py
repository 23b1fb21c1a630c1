"""The key `cluster` of a configuration: `Cluster` and `ClusterTLS`, as they are written in YAML."""

from __future__ import annotations

from typing import Any, Final

from wsrelay.peers.options import Cluster, ClusterTLS

from .entries import Model
from .values import Duration, SecretFile

__all__ = ["ClusterSection"]

_CLUSTER: Final = Cluster("nats://127.0.0.1", node="defaults")


class ClusterTLSSection(Model):
    """`ClusterTLS`; paths are relative to the file."""

    ca: SecretFile | None = None
    cert: SecretFile | None = None
    key: SecretFile | None = None
    hostname: str | None = None
    first: bool = False


class ClusterSection(Model):
    """`Cluster`; one for all files of a configuration.

    What is of no type here is checked by `Cluster`, which shows no secrets.
    """

    servers: Any
    name: str = _CLUSTER.name
    node: str | None = None
    lease: Duration = float(_CLUSTER.lease)
    user: str | None = None
    password: Any = None
    token: Any = None
    credentials: SecretFile | None = None
    tls: ClusterTLSSection | None = None
    timeout: Duration = float(_CLUSTER.timeout)

    def options(self, **given: Any) -> Cluster:
        """Return what it says, and what is `given` instead; raises `InvalidOptions`."""
        tls = self.tls and self.tls.build(ClusterTLS)
        return self.build(Cluster, tls=tls, **given)
