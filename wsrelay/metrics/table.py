"""Every metric of a node: its name, what it means, and where it is read.

`docs/metrics.md` has the same table for people; `tests/metrics/test_table.py` compares the two.
Labels have values that are written in this package or in a configuration. A room, a PID or a
client's address is never one: there would be as many time series as there ever were rooms.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal

from msgspec import Struct

from wsrelay.kernel import ProcessState
from wsrelay.node import Node
from wsrelay.node.info import LinkInfo, MemberInfo
from wsrelay.relay.connection import RelayedConnection
from wsrelay.values.message import ExitKind
from wsrelay.values.numbers import RETURNED, Distribution, Numbers

__all__ = ["METRICS", "PREFIX", "Metric", "Reading", "cumulated", "numbers_of"]

PREFIX: Final = "wsrelay_"

_FROZEN: Final = "frozen"
_STATES: Final = (*(one.value for one in ProcessState if one is not ProcessState.EXITED), _FROZEN)

_KINDS: Final = (
    RETURNED,
    *(
        kind.value
        for kind in ExitKind
        if kind
        not in (ExitKind.NOPROC, ExitKind.DISCONNECTED, ExitKind.NO_REPLY, ExitKind.NODE_DOWN)
    ),
)
"""How a process of this node may end."""

Value = int | float | Distribution
Samples = Iterable[tuple[tuple[str, ...], Value]]
"""Values, each with those of the labels."""


class Reading:
    """What is counted once for all metrics: a node's processes, connections and cluster now."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.numbers: Numbers = node.numbers
        self.states: Counter[tuple[str, str]] = Counter()
        self.mailboxes: Counter[str] = Counter(dict.fromkeys(node.hosts, 0))
        for name, state in itertools.product(node.hosts, _STATES):
            self.states[name, state] = 0
        for process in node.engine.processes.values():
            host = process.options.name
            self.states[host, _FROZEN if process.frozen else process.row.state.value] += 1
            self.mailboxes[host] += process.pipe.backlog
        self.outboxes = 0
        for connection in node.clients.connections.values():
            if isinstance(connection, RelayedConnection):
                self.outboxes += connection.outbox
        self.members: list[MemberInfo] = node.engine.elsewhere.members() or []
        """The nodes of its cluster, itself first; none if it is in none."""
        self.links: list[LinkInfo] = [one.link for one in self.members if one.link is not None]


class Metric(Struct, frozen=True):
    """One metric: its name lacks the prefix, `unit` is that of the name, if any."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[Reading], Samples]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name with its prefix."""
        return PREFIX + self.name


def _one(read: Callable[[Reading], Value]) -> Callable[[Reading], Samples]:
    """Return what reads a metric without labels."""
    return lambda reading: [((), read(reading))]


def _in_cluster(read: Callable[[Reading], Samples]) -> Callable[[Reading], Samples]:
    """Return what reads a metric that only nodes of a cluster have."""
    return lambda reading: read(reading) if reading.members else []


def _directions(kind: str) -> Callable[[Reading], Samples]:
    def read(reading: Reading) -> Samples:
        for attribute, direction in (
            ("from_clients", "from_clients"),
            ("to_clients", "to_clients"),
            ("between", "between_processes"),
        ):
            yield (direction,), getattr(reading.numbers, f"{kind}_{attribute}")

    return read


def _runs(reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield each host with the entries that run there by configuration, and with none.

    Their counts are told before anything has happened: of a series that begins at 1, Prometheus
    does not know that it has grown.
    """
    yield from ((host, "") for host in reading.node.hosts)
    for entry in reading.node.entries:
        host = reading.node.engine.home(entry)
        assert host is not None  # noqa: S101 - it is the id of an entry
        yield host, entry


def _starts(reading: Reading) -> Samples:
    return {**dict.fromkeys(_runs(reading), 0), **reading.numbers.starts}.items()


def _ends(reading: Reading) -> Samples:
    none = {(host, entry, kind): 0 for host, entry in _runs(reading) for kind in _KINDS}
    return {**none, **reading.numbers.ends}.items()


def _closed(reading: Reading) -> Samples:
    for code, count in reading.numbers.closed.items():
        yield (str(code or "other"),), count


def _hit(reading: Reading) -> Samples:
    for bound, count in reading.numbers.hit.items():
        refused = reading.node.buffered.refused if bound == "max_buffered" else 0
        yield (bound,), count + refused


def _limits(reading: Reading) -> Samples:
    for name in reading.node.engine.templates.names:
        yield (name,), reading.node.hosts[name].max_processes


def _lease_age(reading: Reading) -> Samples:
    own = reading.members[0]
    return [] if own.unrenewed is None else [((), own.unrenewed)]


def _traffic(reading: Reading) -> Samples:
    traffic = reading.node.engine.elsewhere.traffic()
    for direction in ("sent", "resent", "received"):
        yield (direction,), getattr(traffic, direction)


METRICS: Final = (
    Metric(
        "node_info",
        "gauge",
        "Always 1; the labels are the node's name and the version of wsrelay that it runs.",
        lambda reading: [((reading.node.name, reading.node.version), 1)],
        ("node", "version"),
    ),
    Metric(
        "node_draining",
        "gauge",
        "Whether the node starts nothing any more because it shuts down (1) or not (0).",
        _one(lambda reading: int(reading.node.draining)),
    ),
    Metric(
        "connections",
        "gauge",
        "Relayed WebSocket connections that are open now.",
        _one(lambda reading: len(reading.node.clients.connections)),
    ),
    Metric(
        "connections_opened_total",
        "counter",
        "WebSocket upgrades that succeeded and were relayed.",
        _one(lambda reading: reading.numbers.opened),
    ),
    Metric(
        "connections_closed_total",
        "counter",
        "Relayed connections that have ended, by close code; 1006 is a client that vanished.",
        _closed,
        ("code",),
    ),
    Metric(
        "upgrades_refused_total",
        "counter",
        "WebSocket upgrades that were not relayed, by reason.",
        lambda reading: (((reason,), n) for reason, n in reading.numbers.refused.items()),
        ("reason",),
    ),
    Metric(
        "messages_total",
        "counter",
        "Messages by direction; one that goes to many is counted for each receiver.",
        _directions("messages"),
        ("direction",),
    ),
    Metric(
        "message_bytes_total",
        "counter",
        "Bytes of the payloads of the messages, by direction.",
        _directions("bytes"),
        ("direction",),
    ),
    Metric(
        "dead_letters_total",
        "counter",
        "Messages to a PID or name that nobody had, or to a process that took no more.",
        _one(lambda reading: reading.node.dead_letters),
    ),
    Metric(
        "processes",
        "gauge",
        "Processes that there are now, by host and state.",
        lambda reading: reading.states.items(),
        ("host", "state"),
    ),
    Metric(
        "host_max_processes",
        "gauge",
        "How many processes each host may run (max_processes).",
        _limits,
        ("host",),
    ),
    Metric(
        "process_starts_total",
        "counter",
        "Processes that were spawned, by host and by the entry that they run, if it is one.",
        _starts,
        ("host", "entry"),
    ),
    Metric(
        "process_exits_total",
        "counter",
        "Processes that have ended, by host, entry and kind of their end.",
        _ends,
        ("host", "entry", "kind"),
    ),
    Metric(
        "process_start_seconds",
        "histogram",
        "Time from when a process is asked for until its handler runs, by host.",
        lambda reading: (((host,), n) for host, n in reading.numbers.start_seconds.items()),
        ("host",),
    ),
    Metric(
        "exit_to_close_seconds",
        "histogram",
        "Time from the exit of a process until the close frame of each client is written.",
        _one(lambda reading: reading.numbers.close_seconds),
    ),
    Metric(
        "join_wait_seconds",
        "histogram",
        "Time that a ws.join waits until a process with a name takes it; no other is timed.",
        _one(lambda reading: reading.numbers.join_seconds),
    ),
    Metric(
        "loop_lag_seconds",
        "histogram",
        "How late timers of the node's event loop are, sampled while somebody reads metrics.",
        _one(lambda reading: reading.numbers.lag_seconds),
    ),
    Metric(
        "mailbox_bytes",
        "gauge",
        "Bytes that wait at the node for room at the processes of each host.",
        lambda reading: (((host,), size) for host, size in reading.mailboxes.items()),
        ("host",),
    ),
    Metric(
        "outbox_bytes",
        "gauge",
        "Bytes that wait at the node for clients that read slowly.",
        _one(lambda reading: reading.outboxes),
    ),
    Metric(
        "buffered_bytes",
        "gauge",
        "Bytes of messages, bodies and responses that clients have begun and not finished.",
        _one(lambda reading: reading.node.buffered.size),
    ),
    Metric(
        "max_buffered_bytes",
        "gauge",
        "The bound of wsrelay_buffered_bytes (max_buffered).",
        _one(lambda reading: reading.node.buffered.most),
    ),
    Metric(
        "bounds_hit_total",
        "counter",
        "How often a bound was reached, so that something was ended, refused or had to wait.",
        _hit,
        ("bound",),
    ),
    Metric(
        "cluster_members",
        "gauge",
        "Nodes of the cluster as this one knows them, itself included, by state.",
        _in_cluster(
            lambda reading: (
                ((state,), n) for state, n in Counter(o.state for o in reading.members).items()
            )
        ),
        ("state",),
    ),
    Metric(
        "cluster_lease_age_seconds",
        "gauge",
        "Time since the node's lease was renewed.",
        _in_cluster(_lease_age),
    ),
    Metric(
        "cluster_link_bytes_total",
        "counter",
        "Bytes that the links to all other nodes have carried: sent once, sent again, received.",
        _in_cluster(_traffic),
        ("direction",),
    ),
    Metric(
        "cluster_link_backlog_bytes",
        "gauge",
        "Bytes that wait at the node for room on the links to all other nodes.",
        _in_cluster(_one(lambda reading: sum(link.backlog for link in reading.links))),
    ),
    Metric(
        "cluster_link_unacknowledged_bytes",
        "gauge",
        "Bytes that are under way to all other nodes.",
        _in_cluster(_one(lambda reading: sum(link.unacknowledged for link in reading.links))),
    ),
    Metric(
        "cluster_link_delay_seconds",
        "gauge",
        "Time for which nothing under way was acknowledged, on the link where that is longest.",
        _in_cluster(_one(lambda reading: max((one.delay for one in reading.links), default=0.0))),
    ),
)


def numbers_of(node: Node) -> dict[str, Any]:
    """Return all metrics as JSON has them, by their names without prefix.

    A metric without labels is a number. One with labels is a list of objects, which have the labels
    and `value`. In place of a number a histogram has an object: `count`, `sum` in seconds, and
    `buckets`, which says how many values were at most each upper bound. Must be called in the
    node's event loop; for a while from now on, that is sampled for `loop_lag_seconds`.
    """
    node.lag.look()
    reading = Reading(node)
    return {metric.name: _plain(metric, reading) for metric in METRICS}


def _plain(metric: Metric, reading: Reading) -> Any:
    samples = [(labels, _number(value)) for labels, value in metric.read(reading)]
    if not metric.labels:
        return samples[0][1] if samples else None
    return [
        {**dict(zip(metric.labels, labels, strict=True)), "value": value}
        for labels, value in samples
    ]


def _number(value: Value) -> Any:
    if not isinstance(value, Distribution):
        return value
    buckets = cumulated(value)
    return {"count": buckets[-1][1], "sum": value.sum, "buckets": dict(buckets)}


def cumulated(values: Distribution) -> list[tuple[str, int]]:
    """Return how many values were at most each bound, the last of which is `+Inf`."""
    bounds = [*(repr(bound) for bound in values.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(values.counts), strict=True))
