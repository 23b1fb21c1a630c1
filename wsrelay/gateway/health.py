"""`/healthz` and `/readyz`: what load balancers and supervisors ask."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

__all__ = ["health_routes"]


def health_routes(ready: Callable[[], bool]) -> list[Route]:
    """Return the routes: 200 while the loop runs, and 200 or 503 depending on `ready`."""

    async def healthz(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
