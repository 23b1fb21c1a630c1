"""NATS behind the ports of a cluster: `NatsBus` is NATS core, `NatsStore` a JetStream bucket.

Each has a connection of its own: a compare-and-set behind 8 MB/s of messages takes eight times as
long.
"""

from .bus import NatsBus
from .store import NatsStore

__all__ = ["NatsBus", "NatsStore"]
