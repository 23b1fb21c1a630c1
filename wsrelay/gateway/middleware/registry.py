"""The available middleware, and how names and options become an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from wsrelay.config.problems import explained
from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.spelling import nearest

from . import ratelimit, real_ip, standard, token_auth
from .options import Options

__all__ = ["MIDDLEWARE", "check", "wrap"]


class _Kind(NamedTuple):
    options: type[Options]
    build: Callable[[App, Any, Node | None], App]


MIDDLEWARE: Final[dict[str, _Kind]] = {
    "websocket_relay": _Kind(standard.RelayOptions, standard.relay),
    "cors": _Kind(standard.CORSOptions, standard.cors),
    "compress": _Kind(standard.CompressOptions, standard.compress),
    "ratelimit": _Kind(ratelimit.RateLimitOptions, ratelimit.RateLimit.build),
    "real_ip": _Kind(real_ip.RealIPOptions, real_ip.real_ip),
    "token_auth": _Kind(token_auth.TokenAuthOptions, token_auth.TokenAuth.build),
}

_RUNS_CODE: Final = {"token_auth"}
"""Middleware that loads a user's function when it is built, which a check must not do."""

_PREFIXES: Final = {"websocket_relay": "wsrelay."}


def _prefix(name: str) -> str:
    return _PREFIXES.get(name, f"{name}.")


def check(names: Sequence[str], options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with names and options, as pairs of a name or key and a message."""
    problems: list[tuple[str, str]] = [
        (name, f"there is no middleware {name!r}; {nearest(name, MIDDLEWARE)}")
        for name in names
        if name not in MIDDLEWARE
    ]
    problems += [
        (name, f"middleware {name!r} is named twice")
        for name in set(names)
        if names.count(name) > 1
    ]
    known = {name for name in names if name in MIDDLEWARE}
    for key in options:
        if not any(key.startswith(_prefix(name)) for name in known):
            owner = next((name for name in MIDDLEWARE if key.startswith(_prefix(name))), None)
            keys = [key for name in known for key in _keys(name)]
            hint = (
                f"it belongs to {owner!r}, which is not in the list"
                if owner
                else nearest(key, keys)
            )
            problems.append((key, f"unknown option; {hint}"))
    for name in sorted(known):
        parsed, wrong = _parsed(name, options)
        problems += wrong if parsed is None else _tried(name, parsed)
    return problems


async def _nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing, in place of an application."""


def _tried(name: str, options: Options) -> list[tuple[str, str]]:
    """Build a middleware around a dummy application, and return the options that it refuses."""
    if name in _RUNS_CODE:
        return []
    try:
        MIDDLEWARE[name].build(_nobody, options, None)
    except InvalidOptions as error:
        prefix = _prefix(name)
        return [(prefix + option.replace("_", "."), text) for option, text in error.problems]
    return []


def wrap(app: App, names: Sequence[str], options: Mapping[str, Any], node: Node) -> App:
    """Put middleware around an application, the first name outermost; raises `ValueError`."""
    if problems := check(names, options):
        raise ValueError("; ".join(f"{key}: {message}" for key, message in problems))
    for name in reversed(names):
        app = MIDDLEWARE[name].build(app, _parsed(name, options)[0], node)
    return app


def _keys(name: str) -> list[str]:
    prefix = _prefix(name)
    return [f"{prefix}{field.alias}" for field in MIDDLEWARE[name].options.model_fields.values()]


def _parsed(name: str, options: Mapping[str, Any]) -> tuple[Options | None, list[tuple[str, str]]]:
    """Return a middleware's own options, or what is wrong with them."""
    prefix, model = _prefix(name), MIDDLEWARE[name].options
    own = {key.removeprefix(prefix): v for key, v in options.items() if key.startswith(prefix)}
    try:
        return model.model_validate(own), []
    except ValidationError as error:
        problems = []
        for one in error.errors():
            key = prefix + ".".join(str(part) for part in one["loc"][:1])
            keys = [key.removeprefix(prefix) for key in _keys(name)]
            problems.append((key if one["loc"] else name, explained(one, keys)))
        return None, problems
