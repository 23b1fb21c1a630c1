"""`RelayResponse`: the response of an HTTP handler that hands its client to a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from starlette.responses import Response

from wsrelay.errors import InvalidTarget, RelayRefused
from wsrelay.session import header
from wsrelay.values import durations, targets

__all__ = ["RelayResponse"]


class RelayResponse(Response):
    """A Starlette response with the `X-WS-Relay` header.

    It names a process that exists (`target_pid`), or a `target` that the relay starts once the
    upgrade has been found good: an entry id, `module:function`, `path/to/script.py:function`, or
    the function or class itself if it stands at the top level of a module. Without `name` it lives
    for this connection; with `name` the process of that name is used if there is one, and
    `end_when_empty` cancels the process so long after its last client has left. `args` are JSON,
    `host` is as in `wsrelay.process.spawn`.

    `heartbeat_interval` and `end_when_empty` are durations such as `30s`, or seconds. `subprotocol`
    is one that the client offers (`request.scope["subprotocols"]`); a browser that offers some
    closes if none is selected. Raises `RelayRefused` for anything that the relay would refuse.
    """

    def __init__(
        self,
        target_pid: str | None = None,
        *,
        target: str | Callable[..., Any] | None = None,
        name: str | None = None,
        host: str | None = None,
        args: Iterable[Any] = (),
        end_when_empty: str | float | None = None,
        message_topic: str | None = None,
        heartbeat_interval: str | float | None = None,
        metadata: Mapping[str, Any] | None = None,
        cancel_on_leave: bool | None = None,
        subprotocol: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            relay = {
                "target_pid": target_pid,
                "target": _text_of(target),
                "name": name,
                "host": host,
                "args": _arguments(args),
                "end_when_empty": _duration("end_when_empty", end_when_empty),
                "message_topic": message_topic,
                "heartbeat_interval": _duration("heartbeat_interval", heartbeat_interval),
                "metadata": _metadata(metadata),
                "cancel_on_leave": cancel_on_leave,
            }
            both = {**(headers or {}), header.HEADER: header.write(relay)}
            if subprotocol is not None:
                both["sec-websocket-protocol"] = header.check_subprotocol(subprotocol)
        except RelayRefused:
            raise
        except (InvalidTarget, TypeError, ValueError) as error:
            raise RelayRefused(str(error)) from None
        except RecursionError:
            raise RelayRefused("args: nested too deeply, or a list that holds itself") from None
        super().__init__(headers=both)


def _text_of(target: str | Callable[..., Any] | None) -> str | None:
    return target if target is None or isinstance(target, str) else targets.text_of(target)


def _duration(option: str, given: str | float | None) -> str | None:
    """Return a duration as text; raises `TypeError`, `ValueError`."""
    return given if given is None else durations.show(durations.either(given, option))


def _metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"metadata is {metadata!r:.80} and must be a dict")
    return None if metadata is None else dict(metadata)


def _arguments(args: Iterable[Any]) -> list[Any] | None:
    """Return the arguments as a list; raises `ValueError` for what JSON would change or refuse."""
    if isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable):
        raise ValueError(f"args is {args!r:.80} and must be a list of the target's arguments")  # noqa: TRY004
    given = list(args)
    for number, argument in enumerate(given):
        _check(argument, f"args[{number}]")
    return given or None


def _check(value: Any, place: str) -> None:
    """Raise `ValueError` for a value that is not JSON; `place` is where it stands."""
    if value is None or isinstance(value, str | int | float):
        return
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check(item, f"{place}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{place} has the key {key!r:.80}: {_RIGHT}")  # noqa: TRY004
            _check(item, f"{place}[{key!r:.40}]")
    else:
        raise ValueError(f"{place} is of type {type(value).__name__}: {_RIGHT}")  # noqa: TRY004


_RIGHT: Final = (
    "arguments of a target are JSON (None, bool, int, float, str, lists, dicts with text as keys); "
    "give the process what it needs to find the rest itself"
)
