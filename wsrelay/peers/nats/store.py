"""The port `Store` over a key-value bucket of JetStream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from wsrelay.cluster.ports import Conflict, Entry, Unavailable
from wsrelay.errors import CannotJoin
from wsrelay.peers.options import Cluster

from .connection import NatsConnection
from .jetstream import Answer, JetStreamError, NoJetStream, Questions, Refused, Stored

__all__ = ["NatsStore"]

logger = logging.getLogger(__name__)

_ANSWER: Final = 1.0
"""Seconds that an answer may take."""

_MARKED: Final = timedelta(hours=1)
"""How long a deleted key leaves its marker, against writes that arrive late."""

_MOST_MARKERS: Final = 10_000
_TIDY: Final = 60.0
"""Markers beyond these are purged earlier; all of them are looked at once in so many seconds."""

_AT_ONCE: Final = 100
"""Keys that are read at once for a list."""

_PATIENCE: Final = 5.0
"""Seconds for which NATS' own cluster may be without three servers before the bucket is made."""

_REPLICAS: Final = 3

_NO_MESSAGE: Final = 10037
_NAME_IN_USE: Final = 10058
_NO_STREAM: Final = 10059
_WRONG_SEQUENCE: Final = {10071, 10164}
_NOT_ENABLED: Final = {10039, 10076}
_NOT_CLUSTERED: Final = 10074
_FEW_SERVERS: Final = {10005, 10023}
"""JetStream's codes of errors."""

_KEY: Final = b"Nats-Expected-Last-Subject-Sequence: %d\r\n"
_DELETE: Final = b"KV-Operation: DEL\r\n"
_MARKS: Final = (b"KV-Operation: DEL", b"KV-Operation: PURGE", b"Nats-Marker-Reason:")

_NEEDED: Final[dict[str, Any]] = {
    "storage": "file",
    "retention": "limits",
    "max_msgs_per_subject": 1,
    "max_age": 0,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msg_size": -1,
}
"""What a bucket must be like, by the names that `nats stream info` shows."""


class NatsStore:
    """The port `Store` over the bucket `wsr_<cluster>` of JetStream; call `open` first.

    The bucket is made by the first node. Questions are answered by the stream's leader, each within
    `answer` seconds.
    """

    def __init__(self, cluster: Cluster, *, answer: float = _ANSWER) -> None:
        self.sequence = 0
        """The highest revision of the store that was seen in any answer."""
        self.on_rewound: list[Callable[[int, int], None]] = []
        """Called with the last revision that was seen and the lower one that the store has now:
        what was written in between is lost."""
        self._last = 0
        self._rewinds = 0
        self._bucket = f"wsr_{cluster.name}"
        self._connection = NatsConnection(cluster, "the store", self._prepare)
        self._questions = Questions(
            self._connection, f"wsr.{cluster.name}.i.{cluster.node_name}", answer
        )
        self._markers: deque[tuple[datetime, str, int]] = deque()
        """Deleted keys whose markers are to be purged: when, key, revision."""
        self._tidying: asyncio.Task[None] | None = None
        self._made_by: float | None = None
        self._has_advised = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection, and the bucket behind it."""
        return self._connection.connected

    async def open(self) -> None:
        """Connect, and make the bucket if there is none.

        Raises `CannotJoin` if that fails for good, or within the cluster's `timeout`: without
        JetStream, or with a bucket of that name that cannot hold what a cluster needs.
        """
        await self._questions.open()
        await self._connection.open()
        self._tidying = asyncio.create_task(self._tidy())

    async def aclose(self) -> None:
        """Disconnect; who still waits for an answer gets `Unavailable`."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
        await self._connection.aclose()

    async def get(self, key: str) -> Entry | None:
        """Return what the store has decided last; None if there is no such key."""
        message = await self._read(key)
        if message is None or _is_marker(message):
            return None
        return Entry(key, message.data, message.seq)

    async def put(self, key: str, value: bytes, expected: int) -> int:
        """Write if the key's revision is `expected`, 0 for none; returns the new revision.

        Raises `Conflict`. A key that was deleted counts as none.
        """
        try:
            return await self._write(key, value, expected)
        except Conflict:
            marker = None if expected else await self._read(key)
            if marker is None or not _is_marker(marker):
                raise
        return await self._write(key, value, marker.seq)

    async def delete(self, key: str, expected: int) -> int:
        """Delete if the key's revision is `expected`; returns the revision of that.

        Raises `Conflict`.
        """
        revision = await self._write(key, b"", expected, _DELETE)
        self._markers.append((datetime.now(UTC) + _MARKED, key, revision))
        return revision

    async def list(self, prefix: str) -> list[Entry]:
        """Return the keys that begin with the prefix; slow, for starts and operators."""
        tokens = prefix.rpartition(".")[0]
        wanted = self._subject(f"{tokens}.>" if tokens else ">")
        keys: set[str] = set()
        while True:
            question = {"subjects_filter": wanted, "offset": len(keys)}
            answer = await self._manage("STREAM.INFO", question)
            found = answer.state.subjects if answer.state is not None else {}
            keys.update(subject.removeprefix(self._subject("")) for subject in found)
            if not found or len(keys) >= answer.total:
                break
        chosen = sorted(key for key in keys if key.startswith(prefix))
        entries = []
        for start in range(0, len(chosen), _AT_ONCE):
            batch = chosen[start : start + _AT_ONCE]
            messages = await asyncio.gather(*(self._read(key) for key in batch))
            for key, message in zip(batch, messages, strict=True):
                if message is None:
                    continue
                if not _is_marker(message):
                    entries.append(Entry(key, message.data, message.seq))
                elif message.time < datetime.now(UTC) - _MARKED:  # left by a node that has died
                    self._markers.appendleft((message.time, key, message.seq))
        return entries

    # Reading and writing

    def _subject(self, key: str) -> str:
        return f"$KV.{self._bucket}.{key}"

    async def _read(self, key: str) -> Stored | None:
        """Return the key's last message, which may be a marker."""
        question = {"last_by_subj": self._subject(key)}
        answer = await self._manage("STREAM.MSG.GET", question, again=True)
        if answer.message is not None:
            self._seen(answer.message.seq)
        return answer.message

    async def _write(self, key: str, value: bytes, expected: int, headers: bytes = b"") -> int:
        before, rewinds = self._last, self._rewinds
        headers = b"NATS/1.0\r\n" + _KEY % expected + headers + b"\r\n"
        try:
            answer = await self._questions.ask(self._subject(key), value, headers)
        except NoJetStream:  # or the bucket has no leader at the moment
            await self._manage("STREAM.INFO", {})
            raise
        if (error := answer.error) is not None:
            if error.err_code in _WRONG_SEQUENCE:
                raise Conflict(f"{key} is not at revision {expected}: {error.description}")
            raise _unavailable(error)
        if answer.seq <= before and rewinds == self._rewinds:
            self._rewound(answer.seq)
        self._seen(answer.seq)
        return answer.seq

    async def _manage(
        self, call: str, question: object, *, at_once: bool = False, again: bool = False
    ) -> Answer:
        """Ask something of the bucket's stream; raises `Unavailable` if that is an error."""
        subject = f"$JS.API.{call}.KV_{self._bucket}"
        data = msgspec.json.encode(question)
        answer = await self._questions.ask(subject, data, at_once=at_once, again=again)
        if (error := answer.error) is None or error.err_code == _NO_MESSAGE or at_once:
            return answer
        if error.err_code == _NO_STREAM:
            self._connection.drop("the bucket is gone")  # the next connection makes it anew
        raise _unavailable(error)

    def _seen(self, sequence: int) -> None:
        self._last = max(self._last, sequence)
        self.sequence = max(self.sequence, sequence)

    def _rewound(self, sequence: int) -> None:
        """Tell that the store has forgotten what it has answered."""
        seen, self._last = self._last, sequence
        self._rewinds += 1
        logger.error(
            "the bucket %s has lost writes: its last revision was %d and is %d "
            "(docs/cluster.md says how NATS keeps them)",
            self._bucket,
            seen,
            sequence,
        )
        for rewound in self.on_rewound:
            rewound(seen, sequence)

    # The bucket

    async def _prepare(self) -> None:
        """Make sure of the bucket, with each new connection."""
        try:
            answer = await self._manage("STREAM.INFO", {}, at_once=True)
            if answer.error is not None and answer.error.err_code == _NO_STREAM:
                answer = await self._make()
        except Refused as refused:
            raise CannotJoin(f"{refused} (docs/cluster.md has what a node needs)") from None
        except NoJetStream:
            raise CannotJoin(
                "NATS runs without JetStream: nats-server needs `jetstream { }` in its "
                "configuration, or --jetstream"
            ) from None
        if (error := answer.error) is not None:
            if error.err_code in _NOT_ENABLED:
                raise CannotJoin(f"NATS has no JetStream for this node's user: {error.description}")
            raise _unavailable(error)
        self._check(answer)
        last = answer.state.last_seq if answer.state is not None else 0
        if last < self._last:
            self._rewound(last)
        self._seen(last)

    async def _make(self) -> Answer:
        """Make the bucket with three replicas, or one if NATS is a single server."""
        loop = asyncio.get_running_loop()
        answer = await self._create(_REPLICAS)
        code = answer.error.err_code if answer.error is not None else 0
        if code in _FEW_SERVERS:  # they may only just be starting
            self._made_by = self._made_by or loop.time() + _PATIENCE
            if loop.time() < self._made_by:
                return answer
        if code == _NOT_CLUSTERED or code in _FEW_SERVERS:
            answer = await self._create(1)
            code = answer.error.err_code if answer.error is not None else 0
        if code == _NAME_IN_USE:  # another node was faster
            answer = await self._manage("STREAM.INFO", {}, at_once=True)
        return answer

    async def _create(self, replicas: int) -> Answer:
        config = {
            **_NEEDED,
            "name": f"KV_{self._bucket}",
            "description": "wsrelay: leases and names of a cluster",
            "subjects": [self._subject(">")],
            "num_replicas": replicas,
            "max_consumers": -1,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": False,
        }
        return await self._manage("STREAM.CREATE", config, at_once=True)

    def _check(self, answer: Answer) -> None:
        """Refuse a bucket that somebody has made in another way, and warn of a weak one."""
        config = answer.config
        if config is None:
            raise Unavailable("JetStream has not told the bucket's settings")
        for setting, needed in _NEEDED.items():
            if (given := getattr(config, setting)) != needed:
                raise CannotJoin(
                    f"the bucket {self._bucket} of NATS has {setting} {given!r} and must have "
                    f"{needed!r}: `nats kv del {self._bucket}` deletes it"
                )
        if config.subjects != [self._subject(">")]:
            raise CannotJoin(f"the stream KV_{self._bucket} of NATS is no key-value bucket")
        if config.num_replicas < _REPLICAS and not self._has_advised:
            self._has_advised = True
            clustered = bool(answer.cluster and answer.cluster.get("name"))
            logger.log(
                logging.WARNING if clustered else logging.INFO,
                "the bucket %s has %d of 3 replicas: unless NATS has `sync_interval: always`, a "
                "crash of its machine may lose who has which name (docs/cluster.md)",
                self._bucket,
                config.num_replicas,
            )

    # Markers of deleted keys

    async def _tidy(self) -> None:
        """Purge markers whose time has come, as long as it lives."""
        while True:
            await asyncio.sleep(_TIDY)
            try:
                await self.purge_markers()
            except Unavailable:
                continue

    async def purge_markers(self) -> None:
        """Purge the markers of keys that were deleted an hour ago; raises `Unavailable`."""
        markers = self._markers
        while markers and (markers[0][0] <= datetime.now(UTC) or len(markers) > _MOST_MARKERS):
            _, key, revision = markers[0]
            # Up to the marker only: whoever has written the key again meanwhile is not touched.
            question = {"filter": self._subject(key), "seq": revision + 1}
            await self._manage("STREAM.PURGE", question)
            markers.popleft()


def _unavailable(error: JetStreamError) -> Unavailable:
    return Unavailable(f"JetStream: {error.description} ({error.err_code})")


def _is_marker(message: Stored) -> bool:
    return any(mark in message.hdrs for mark in _MARKS)
