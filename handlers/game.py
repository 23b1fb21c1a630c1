"""Pong: a lobby pairs players, each pair gets a process of its own, and others may watch.

    wsrelay run handlers/game.py:Lobby --scope shared --static handlers/pages/game

A client that comes back as the same player (`?player=ada`) gets its paddle back.
"""

from __future__ import annotations

import msgspec

from wsrelay import PID, Client, Event, Presence, Room, every, on, process

RATE = 30
GOALS = 5
SIDES = (0, 1)
PADDLE = 0.2


class Query(msgspec.Struct):
    player: str = ""  # without a name it watches the game that began last


class Visit(msgspec.Struct):
    query: Query


class Move(msgspec.Struct, tag="move"):
    to: float  # where the middle of the paddle is wanted, from 0 (top) to 1


class Lobby(Room[Visit]):
    """Sends every client on to a game as soon as there is one for it."""

    def on_start(self) -> None:
        self.games: dict[PID, list[str]] = {}

    def on_join(self, client: Client[Visit]) -> None:
        player = client.metadata.query.player
        there = [pid for pid, players in self.games.items() if not player or player in players]
        waiting = {one.metadata.query.player: one for one in self.clients}
        waiting.pop("", None)
        if there:
            client.transfer(there[-1])
        elif len(waiting) == len(SIDES):
            game = process.spawn_monitored(Game, None, list(waiting))
            self.games[game] = list(waiting)
            for one in self.clients:
                one.transfer(game)
        else:
            client.send_json({"type": "waiting"})

    def on_event(self, event: Event | Presence) -> None:
        if isinstance(event, Event):  # that a game has ended
            self.games.pop(event.sender, None)


class Game(Room[Visit]):
    """One match. It ends at `GOALS`, or when nobody is there any more."""

    def on_start(self, players: list[str]) -> None:
        process.set_options(end_when_empty=10)
        self.players = players
        self.paddles = [0.5, 0.5]
        self.goals = [0, 0]
        self.serve(1)

    def serve(self, direction: int) -> None:
        """Put the ball in the middle."""
        self.x, self.y, self.dx, self.dy = 0.5, 0.5, 0.5 * direction, 0.35

    def on_join(self, client: Client[Visit]) -> None:
        client.send_json({"type": "game", "players": self.players})

    @on(Move)
    def move(self, client: Client[Visit], message: Move) -> None:
        if (player := client.metadata.query.player) in self.players:  # spectators have no paddle
            self.paddles[self.players.index(player)] = min(max(message.to, 0.0), 1.0)

    @every(1 / RATE)
    def tick(self) -> None:
        self.x += self.dx / RATE
        self.y += self.dy / RATE
        if not 0 < self.y < 1:
            self.dy = -self.dy
        if not 0 < self.x < 1:
            side = int(self.x >= 1)
            if abs(self.paddles[side] - self.y) < PADDLE / 2:
                self.dx = -self.dx * 1.05
            else:
                self.goals[1 - side] += 1
                self.serve(1 - 2 * side)
        state = {"type": "state", "ball": [self.x, self.y], "paddles": self.paddles}
        self.broadcast_json({**state, "goals": self.goals})
        if GOALS in self.goals:
            self.broadcast_json({"type": "won", "player": self.players[self.goals.index(GOALS)]})
            self.end()
