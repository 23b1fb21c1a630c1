"""A lobby: players wait in one process, and each pair is transferred to its own game process.

The game is tic-tac-toe; a move is a text message `1` to `9`, the cells from the top left.

wsrelay run handlers/lobby.py --scope shared
"""

import json
from collections.abc import Iterable

from wsrelay import ChannelClosed, process

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
MARKS = "XO"
FREE = "."
SEATING = 5.0
CALLED_OFF = "the game was called off"


def tell(client: str, **news: object) -> None:
    """Send one client a JSON object."""
    process.send(client, "ws.send", {"type": "text", "data": json.dumps(news)})


def dismiss(clients: Iterable[str], reason: str, code: int = 1000) -> None:
    """Close the connections of all these clients."""
    process.send([*clients], "ws.close", {"code": code, "reason": reason})


def handler() -> None:
    """Pair the players in the order in which they arrive."""
    waiting: list[str] = []
    for message in process.inbox():
        client = message.client
        match message.topic:
            case "ws.join" if client:
                waiting.append(client)
                tell(client, status="waiting for an opponent")
                if len(waiting) == len(MARKS):
                    process.send(waiting, "ws.control", {"target_pid": process.spawn(game)})
                    waiting = []
            case "ws.leave" if client in waiting:
                waiting.remove(client)
            case "ws.error":  # not from a client; the sender is the client that it is about
                dismiss([message.sender], "no game, please come again", code=1013)


class Board:
    """Nine cells, and whose turn it is to mark one."""

    def __init__(self) -> None:
        self.cells = [FREE] * 9
        self.turn = MARKS[0]

    @property
    def rows(self) -> list[str]:
        """The board as three texts of three cells."""
        return ["".join(self.cells[i : i + 3]) for i in (0, 3, 6)]

    @property
    def result(self) -> str | None:
        """What ended the game, or None while it goes on."""
        for line in LINES:
            marks = {self.cells[i] for i in line}
            if len(marks) == 1 and marks != {FREE}:
                return f"{marks.pop()} has won"
        return None if FREE in self.cells else "a draw"

    def play(self, mark: str, move: str | bytes) -> None:
        """Put `mark` on the cell that `move` names; raises `ValueError` for an invalid move."""
        if mark != self.turn:
            raise ValueError("it is your opponent's turn")
        free = {str(n): n - 1 for n in range(1, 10) if self.cells[n - 1] == FREE}
        if move not in free:
            raise ValueError(f"a move is one of {', '.join(free)}")
        self.cells[free[str(move)]] = mark
        self.turn = MARKS[1 - MARKS.index(mark)]


def game() -> None:
    """Play one game between the first two clients that join, then close both."""
    marks: dict[str, str] = {}
    dismiss(marks, seat(marks) or play(marks))


def seat(marks: dict[str, str]) -> str | None:
    """Give the clients that join their marks; return the reason if there can be no game."""
    inbox = process.inbox()
    while len(marks) < len(MARKS):
        try:
            message = inbox.receive(timeout=SEATING)
        except TimeoutError:
            return "your opponent did not come"
        except ChannelClosed:
            return CALLED_OFF
        if (client := message.client) is None:
            continue
        match message.topic:
            case "ws.join":
                marks[client] = MARKS[len(marks)]
            case "ws.leave":
                del marks[client]
    return None


def play(marks: dict[str, str]) -> str:
    """Referee a game between two seated players and return how it ended."""
    board = Board()
    show(board, marks)
    for message in process.inbox():
        if (client := message.client) is None:
            continue
        match message.topic:
            case "ws.leave":
                del marks[client]
                return "your opponent has left"
            case "ws.message":
                try:
                    board.play(marks[client], message.payload["data"])
                except ValueError as error:
                    tell(client, error=str(error))
                else:
                    show(board, marks)
        if board.result:
            return board.result
    return CALLED_OFF


def show(board: Board, marks: dict[str, str]) -> None:
    """Send each player the current board."""
    for client, mark in marks.items():
        tell(client, you=mark, turn=board.turn, board=board.rows, result=board.result)
