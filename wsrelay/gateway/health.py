"""`/healthz` and `/readyz`: what load balancers and supervisors ask."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

__all__ = ["health_routes"]


def health_routes(unready: Callable[[], str]) -> list[Route]:
    """Return the routes: 200 while the loop runs; 503 while `unready` gives a reason, or 200."""

    async def healthz(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> PlainTextResponse:
        why = unready()
        if why:
            return PlainTextResponse(f"not ready: {why}\n", 503)
        return PlainTextResponse("ready\n")

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
