"""Conway's Game of Life on a torus: one simulation per room, at a steady rate, for all its clients.

A generation is one binary message, where the cell (x, y) is bit `y * width + x`, lowest first.
Clients send JSON, one command each: `{"set": [[x, y], ...]}`, `{"clear": true}`,
`{"random": true}`, `{"rate": 10}` (generations per second) or `{"pause": true}`.

wsrelay run handlers/life.py --scope room --static handlers/pages/life
"""

import json
import os
import random
import time

from wsrelay import ChannelClosed, process

WIDTH, HEIGHT = 96, 64
AREA = WIDTH * HEIGHT
MIN_RATE, MAX_RATE = 1, 60

NORTH = (1 << WIDTH) - 1
SOUTH = NORTH << (AREA - WIDTH)
WEST = sum(1 << y * WIDTH for y in range(HEIGHT))
EAST = WEST << (WIDTH - 1)


def add(a: int, b: int, c: int) -> tuple[int, int]:
    """Add three bits in every position: a full adder as wide as the board."""
    return a ^ b ^ c, (a & b) | (c & (a ^ b))


def with_row_neighbours(cells: int) -> tuple[int, int, int]:
    """Return the board moved one column east, as it is, and moved one column west."""
    from_west = (cells & ~EAST) << 1 | (cells & EAST) >> (WIDTH - 1)
    from_east = (cells & ~WEST) >> 1 | (cells & WEST) << (WIDTH - 1)
    return from_west, cells, from_east


def with_column_neighbours(cells: int) -> tuple[int, int, int]:
    """Return the board moved one row south, as it is, and moved one row north."""
    from_north = (cells & ~SOUTH) << WIDTH | cells >> (AREA - WIDTH)
    from_south = cells >> WIDTH | (cells & NORTH) << (AREA - WIDTH)
    return from_north, cells, from_south


def step(cells: int) -> int:
    """Return the next generation of a board whose cells are the bits of one integer.

    A cell lives on if the 3 x 3 square around it, itself included, holds three living cells,
    or four with itself among them. The squares of all cells are counted at once, in binary.
    """
    low, high = add(*with_row_neighbours(cells))
    ones, carry = add(*with_column_neighbours(low))
    twos, fours = add(*with_column_neighbours(high))
    odd_twos = twos ^ carry
    three = ones & odd_twos & ~fours
    four = ~ones & ~odd_twos & (fours ^ (twos & carry))
    return three | (cells & four)


def soup() -> int:
    """Return a random board on which every fourth cell is alive."""
    return random.getrandbits(AREA) & random.getrandbits(AREA)


def cell(point: object) -> int:
    """Return the bit of the cell at `[x, y]`."""
    match point:
        case [int(x), int(y)] if 0 <= x < WIDTH and 0 <= y < HEIGHT:
            return 1 << y * WIDTH + x
    raise ValueError(f"a cell is [x, y] with x in 0..{WIDTH - 1} and y in 0..{HEIGHT - 1}")


class Life:
    """One board and the clients that watch it."""

    def __init__(self) -> None:
        self.cells = soup()
        self.rate: float = 10
        self.paused = False
        self._touched = False
        self._clients: set[str] = set()

    @property
    def idle(self) -> bool:
        """Whether the next tick would change nothing, or nobody would see it."""
        return not self._clients or (self.paused and not self._touched)

    def tick(self) -> None:
        """Show all clients the next generation or, while paused, what was drawn by hand."""
        if not self.paused:
            self.cells = step(self.cells)
        self._touched = False
        self._show(self._clients)

    def join(self, client: str) -> None:
        """Tell a new client the state of the simulation and show it the board."""
        self._tell({client}, self._state())
        self._show({client})
        self._clients.add(client)

    def leave(self, client: str) -> None:
        """Stop showing this client the board."""
        self._clients.discard(client)

    def obey(self, client: str, text: str | bytes) -> None:
        """Carry out a client's command; an invalid one gets an error and changes nothing."""
        try:
            self._command(json.loads(text))
        except (ValueError, RecursionError) as error:
            self._tell({client}, {"error": str(error)})

    def _command(self, command: object) -> None:
        if not isinstance(command, dict) or len(command) != 1:
            raise ValueError("a command is a JSON object with one key")
        match command.popitem():
            case "set", [*points] if len(points) <= AREA:
                alive = {cell(point) for point in points}
                self._redraw(self.cells | sum(alive))
            case "clear", True:
                self._redraw(0)
            case "random", True:
                self._redraw(soup())
            case "rate", rate if type(rate) in {int, float} and MIN_RATE <= rate <= MAX_RATE:
                self.rate = rate
                self._tell(self._clients, self._state())
            case "pause", bool(paused):
                self.paused = paused
                self._tell(self._clients, self._state())
            case name, _:
                raise ValueError(f"unknown command or unusable value: {name:.40}")

    def _redraw(self, cells: int) -> None:
        self.cells = cells
        self._touched = True

    def _state(self) -> dict[str, object]:
        size = {"width": WIDTH, "height": HEIGHT}
        return {**size, "rate": self.rate, "paused": self.paused, "os_pid": os.getpid()}

    def _show(self, clients: set[str]) -> None:
        bitmap = self.cells.to_bytes(AREA // 8, "little")
        process.send([*clients], "ws.send", {"type": "binary", "data": bitmap})

    def _tell(self, clients: set[str], data: dict[str, object]) -> None:
        process.send([*clients], "ws.send", {"type": "text", "data": json.dumps(data)})


def handler() -> None:
    """Run one simulation: tick when it is due, and in between carry out clients' commands."""
    life = Life()
    inbox = process.inbox()
    last_tick = time.monotonic()
    while True:
        timeout = None
        if not life.idle:
            period = 1 / life.rate
            now = time.monotonic()
            elapsed = now - last_tick
            if elapsed >= period:
                life.tick()
                # The time at which this tick was due, not when it ran, so that delays never add up.
                last_tick = now - elapsed % period
            timeout = max(0.0, last_tick + period - time.monotonic())
        try:
            message = inbox.receive(timeout=timeout)
        except TimeoutError:
            continue
        except ChannelClosed:
            return
        if (client := message.client) is None:
            continue
        match message.topic:
            case "ws.join":
                life.join(client)
            case "ws.message":
                life.obey(client, message.payload["data"])
            case "ws.leave":
                life.leave(client)
