"""Holds that a class is found by its name: there is one of each."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import wsrelay

PACKAGE = Path(wsrelay.__file__).parent

TWO_FACES = {
    **{key: ["aio/process.py", "process.py"] for key in ("Channel", "groups", "registry")},
    **{key: ["values/awaited.py", "values/message.py"] for key in ("Called", "Message", "Relayed")},
    "Room": ["aio/room.py", "room.py"],
    "Client": ["testing/client.py", "values/awaited.py", "values/client.py"],
}
"""They have the same public names by intent: one is for functions, the other for coroutines.

A test's `Client` is the other end of the connection, in a namespace of its own.
"""


def _classes() -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path.relative_to(PACKAGE).as_posix())
    return found


def test_no_class_name_is_defined_twice_but_for_the_two_faces() -> None:
    classes = _classes()
    assert classes["Node"] == ["node/node.py"]
    assert {name: places for name, places in classes.items() if len(places) > 1} == TWO_FACES
