"""Columns of numbers that many edit at once: numpy works in a child, and all is saved at the end.

    uvicorn --app-dir handlers document:app

`GET /columns/prices` answers with the column `prices`, whether anybody has it open or not.
"""

import json
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

import wsrelay.aio
from wsrelay import PID, Client, Event, Presence, RelayResponse, Room, answers, on, process


class Edit(msgspec.Struct, tag="edit"):  # all numbers, as a client wants them
    numbers: list[float]


class Estimate(msgspec.Struct, tag="estimate"): ...  # between which bounds is the mean?


class Column(Room):
    """One column. No other process has its name at the same time, so its file has one writer."""

    def on_start(self, name: str) -> None:
        self.name, self.numbers = name, saved(name)
        self.child: PID | None = None

    def on_join(self, client: Client) -> None:
        client.send_json({"type": "column", "numbers": self.numbers})

    @on(Edit)
    def edit(self, client: Client, message: Edit) -> None:
        self.numbers = message.numbers
        self.broadcast_json({"type": "column", "numbers": self.numbers}, but=client)

    @on(Estimate)
    def estimate(self, client: Client, message: Estimate) -> None:
        if self.child is None and self.numbers:
            self.child = process.spawn_monitored(bounds, None, self.numbers)

    def on_event(self, event: Event | Presence) -> None:
        if isinstance(event, Event) and event.result is not None:  # the child's end
            self.child, result = None, event.result
            error = result.error and result.error.message
            self.broadcast_json({"type": "estimate", "bounds": result.value, "error": error})

    @answers
    def content(self) -> list[float]:
        return self.numbers

    def on_stop(self, reason: str) -> None:
        fresh = file_of(self.name).with_suffix(".new")
        fresh.write_text(json.dumps(self.numbers))
        fresh.replace(file_of(self.name))


def bounds(numbers: list[float]) -> list[float]:
    """Return the 95 % confidence interval of the mean, by drawing anew from the numbers."""
    drawn = np.random.default_rng().choice(numbers, (20_000, len(numbers)))
    return [float(bound) for bound in np.quantile(drawn.mean(axis=1), (0.025, 0.975))]


def file_of(name: str) -> Path:
    folder = Path("columns")
    folder.mkdir(exist_ok=True)
    return folder / f"{quote(name, safe='')}.json"


def saved(name: str) -> list[float]:
    return json.loads(file_of(name).read_text()) if file_of(name).exists() else []


async def connect(request: Request) -> Response:
    name = request.path_params["name"]
    return RelayResponse(target=Column, name=f"column:{name}", args=[name], end_when_empty="5s")


async def read(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        return JSONResponse(await wsrelay.aio.process.call(f"column:{name}", "content"))
    except wsrelay.ProcessError:  # nobody has it open
        return JSONResponse(saved(name))


page = StaticFiles(directory=Path(__file__).parent / "pages" / "document", html=True)
routes: list[BaseRoute] = [Route("/ws/{name}", connect), Route("/columns/{name}", read)]
routes += [Route("/wsrelay.{ending}", wsrelay.static), Mount("/", page)]
app = wsrelay.WebSocketRelay(Starlette(routes=routes))
