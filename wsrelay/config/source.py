"""YAML with the line of every key, and with environment variables substituted."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from .problems import ConfigProblem

__all__ = ["Lines", "Source"]

Lines = dict[tuple[str | int, ...], int]
"""Line numbers (from 1) by path, a tuple of keys and indexes."""

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")


class Source:
    """One file: `data` has its contents, `lines` their places, `problems` what cannot be read."""

    def __init__(self, file: Path, environment: Mapping[str, str]) -> None:
        self.file = file
        self.data: Any = None
        self.lines: Lines = {(): 1}
        self.problems: list[ConfigProblem] = []
        self._environment = environment
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            self._problem(0, f"cannot be read: {why}")
            return
        try:
            self._loader = yaml.SafeLoader(text)
            root = self._loader.get_single_node()
            self.data = None if root is None else self._value(root, ())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            said = getattr(error, "problem", None) or str(error).partition("\n")[0]
            self._problem(mark.line + 1 if mark else 1, f"is not YAML: {said}")

    def _problem(self, line: int, message: str) -> None:
        self.problems.append(ConfigProblem(self.file, line, "", "", message))

    def _value(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - there are no other kinds
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        self._loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            line = key_node.start_mark.line + 1
            if key in mapping:
                self._problem(line, f"key {key!r} is already set on line {first[key]}")
            first[key] = self.lines[*path, key] = line
            mapping[key] = self._value(value_node, (*path, key))
        return mapping

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if "${" in node.value:
            node.value = _VARIABLE.sub(lambda match: self._variable(match, node), node.value)
            if node.style is None:
                node.tag = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        return self._loader.construct_object(node)

    def _variable(self, match: re.Match[str], node: yaml.Node) -> str:
        name: str | None = match[1]
        default: str | None = match[2]
        if name is None:
            return "${"
        if name == "HOSTNAME" and default is None:  # a variable of shells, which few export
            default = socket.gethostname()
        if (value := self._environment.get(name, default)) is None:
            line = node.start_mark.line + 1
            self._problem(
                line,
                f"${{{name}}} is not set in the environment and has no default: ${{{name}:-...}}",
            )
            return ""
        return value
