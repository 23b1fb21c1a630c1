"""From files to a `Configuration`, or to a list of everything that is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from msgspec import Struct
from pydantic import BaseModel, ValidationError

from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.spelling import nearest

from .configuration import Configuration, EntryLocation
from .entries import (
    KINDS,
    ConfigEntry,
    EndpointEntry,
    MetricsEntry,
    RouterEntry,
    ServerEntry,
    Static,
)
from .problems import ConfigError, ConfigProblem, explained
from .source import Source

if TYPE_CHECKING:
    from .cluster import ClusterSection

__all__ = ["CheckEntry", "CheckMiddleware", "load"]

CheckMiddleware = Callable[[list[str], Mapping[str, Any]], list[tuple[str, str]]]
"""Takes the names and options of middleware and returns wrong keys, each with what is wrong."""

CheckEntry = Callable[[ConfigEntry, Mapping[str, ConfigEntry]], Iterable[tuple[str, str]]]
"""Takes an entry, and all entries by id, and returns wrong keys (dotted) with what is wrong."""

VERSION: Final = "1.0"

_NAMESPACE: Final = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_NAME: Final = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_TOP: Final = ("version", "namespace", "entries", "cluster")
_OPTIONAL: Final = {"cluster"}


def load(
    paths: Sequence[Path],
    environment: Mapping[str, str] = os.environ,
    check_middleware: CheckMiddleware = lambda _names, _options: [],
    check_entry: CheckEntry = lambda _entry, _entries: (),
) -> Configuration:
    """Read files, and the `*.yaml` and `*.yml` of folders, as one configuration.

    If some keys of an entry are wrong, the rest of it is still checked. Raises `ConfigError` with
    every problem of every file.
    """
    loader = _Loader(environment, check_middleware, check_entry)
    files = [file for path in paths for file in loader.files(path)]
    drafts = [draft for file in files for draft in loader.drafts(file)]
    configuration = loader.configuration(tuple(files), drafts)
    if loader.problems:
        raise ConfigError(sorted(loader.problems, key=lambda p: (str(p.file), p.line)))
    return configuration


class _Draft(Struct):
    """One entry before it is checked: its data, and its position in its file."""

    source: Source
    index: int
    id: str
    namespace: str
    kind: str
    data: dict[str, Any]

    def line(self, *key: str | int) -> int:
        """Return the line of a key or, if it is not in the file, of the nearest one around it."""
        path: tuple[str | int, ...] = ("entries", self.index, *key)
        while path not in self.source.lines:
            path = path[:-1]
        return self.source.lines[path]


class _Loader:
    """Collects the problems of one load."""

    def __init__(
        self,
        environment: Mapping[str, str],
        check_middleware: CheckMiddleware,
        check_entry: CheckEntry,
    ) -> None:
        self.problems: list[ConfigProblem] = []
        self._cluster: tuple[Source, ClusterSection | None] | None = None
        """The file that has the key `cluster`, and what it says if that is right."""
        self._unknown: set[str] = set()
        """Ids of entries of unknown kind: references to them are not reported as well."""
        self._environment = environment
        self._check_middleware = check_middleware
        self._check_entry = check_entry

    # Files

    def files(self, path: Path) -> list[Path]:
        """Return the files that a path stands for."""
        path = path.absolute()
        if not path.is_dir():
            if not path.exists():
                self.problems.append(ConfigProblem(path, 0, "", "", "does not exist"))
                return []
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
        if not files:
            self.problems.append(ConfigProblem(path, 0, "", "", "the folder has no *.yaml in it"))
        return files

    def drafts(self, file: Path) -> list[_Draft]:
        """Read a file and return its entries, each with an id and a known kind."""
        source = Source(file, self._environment)
        self.problems += source.problems
        if source.data is None and source.problems:
            return []
        if not isinstance(source.data, dict):
            self._top(source, (), f"is not a mapping with the keys {', '.join(_TOP[:3])}")
            return []
        for key in source.data:
            if key not in _TOP:
                self._top(source, (key,), f"unknown key; {nearest(key, _TOP)}")
        if source.data.get("version") != VERSION:
            given = source.data.get("version")
            what = "is missing; write" if given is None else f"is {given!r}, not"
            self._top(source, ("version",), f'{what} "{VERSION}"')
        namespace = source.data.get("namespace")
        if not isinstance(namespace, str) or _NAMESPACE.fullmatch(namespace) is None:
            what = "is missing" if namespace is None else f"{namespace!r} is not a name"
            self._top(source, ("namespace",), f"{what}; write one like 'app'")
            namespace = "?"
        if "cluster" in source.data:
            self._take_cluster(source, source.data["cluster"])
        entries = source.data.get("entries")
        if not isinstance(entries, list):
            what = "is missing" if entries is None else "is not a list"
            self._top(source, ("entries",), f"{what}; entries are a list of mappings")
            return []
        drafts = (self._draft(source, i, namespace, data) for i, data in enumerate(entries))
        return [draft for draft in drafts if draft is not None]

    def _take_cluster(self, source: Source, data: Any) -> None:
        from .cluster import ClusterSection  # noqa: PLC0415 - a node in no cluster loads none of it

        if self._cluster is not None:
            first = self._cluster[0]
            place = ConfigProblem(first.file, first.lines["cluster",], "", "", "")
            self._top(source, ("cluster",), f"there is one already at {str(place)[:-2]}")
            return
        section = None
        try:
            section = ClusterSection.model_validate(data, context={"folder": source.file.parent})
            section.options()
        except ValidationError as error:
            for one in error.errors():
                keys = _keys(ClusterSection, one["loc"][:-1])
                self._top(source, ("cluster", *one["loc"]), explained(one, keys))
        except InvalidOptions as error:
            for option, message in error.problems:
                self._top(source, ("cluster", *option.split(".")), message)
        self._cluster = source, section

    def _top(self, source: Source, key: tuple[str | int, ...], message: str) -> None:
        path = key
        while path not in source.lines:
            path = path[:-1]
        shown = ".".join(str(part) for part in key)
        self.problems.append(ConfigProblem(source.file, source.lines[path], "", shown, message))

    def _draft(self, source: Source, index: int, namespace: str, data: Any) -> _Draft | None:
        line = source.lines["entries", index]

        def wrong(key: str, message: str, entry: str = "") -> None:
            at = source.lines.get(("entries", index, key), line)
            self.problems.append(ConfigProblem(source.file, at, entry, key, message))

        if not isinstance(data, dict):
            wrong("", f"entry {index + 1} must be a mapping, not {data!r:.60}")
            return None
        name, kind = data.get("name"), data.get("kind")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            what = "is missing" if name is None else f"{name!r} is not a name"
            wrong("name", f"{what}; write one like 'room' or 'room.endpoint'", f"entry {index + 1}")
            name = None
        entry = f"{namespace}:{name}" if name else f"entry {index + 1}"
        if not isinstance(kind, str) or kind not in KINDS:
            hint = nearest(kind, KINDS) if isinstance(kind, str) else nearest("", KINDS)
            what = "is missing" if kind is None else f"{kind!r} is not a kind"
            wrong("kind", f"{what}; {hint}", entry)
            self._unknown.add(entry)
            return None
        return None if name is None else _Draft(source, index, entry, namespace, kind, data)

    # Entries

    def configuration(self, files: tuple[Path, ...], drafts: list[_Draft]) -> Configuration:
        """Check all entries, each by itself and against the others."""
        known: dict[str, _Draft] = {}
        for draft in drafts:
            if (first := known.get(draft.id)) is not None:
                place = ConfigProblem(first.source.file, first.line("name"), "", "", "")
                self._wrong(draft, ("name",), f"this id is already used at {str(place)[:-2]}")
            else:
                known[draft.id] = draft
        entries: dict[str, ConfigEntry] = {}
        for draft in known.values():
            entry = self._entry(draft, known)
            if entry is not None:
                entries[draft.id] = entry
        for entry in entries.values():
            for key, message in self._check_entry(entry, entries):
                self._wrong(known[entry.id], tuple(key.split(".")), message)
        self._conflicts(entries, known)
        where = {name: EntryLocation(d.source.file, d.line()) for name, d in known.items()}
        if self._cluster is None:
            return Configuration(files, entries, where)
        source, cluster = self._cluster
        at = EntryLocation(source.file, source.lines["cluster",])
        return Configuration(files, entries, where, cluster, at)

    def _wrong(self, draft: _Draft, key: tuple[str | int, ...], message: str) -> None:
        shown = ".".join(str(part) for part in key)
        problem = ConfigProblem(draft.source.file, draft.line(*key), draft.id, shown, message)
        self.problems.append(problem)

    def _entry(self, draft: _Draft, known: Mapping[str, _Draft]) -> ConfigEntry | None:
        model = KINDS[draft.kind]
        data = {**draft.data, "id": draft.id}
        if "id" in draft.data:
            self._wrong(draft, ("id",), "unknown key; an entry's id is its namespace and name")
        for key, kind in model.references.items():
            self._refer(draft, data, key, kind, known)
        for field in ("options", "post_options"):
            if isinstance(options := data.get(field), dict):
                data[field] = {name: _placed(draft, value) for name, value in options.items()}
        entry, wrong = self._validated(draft, model, data)
        if entry is None:
            return None
        for names, options in (("middleware", "options"), ("post_middleware", "post_options")):
            if hasattr(entry, names) and not wrong & {names, options}:
                wrongs = self._check_middleware(getattr(entry, names), getattr(entry, options))
                for name, message in wrongs:
                    place = (options, name) if name in getattr(entry, options) else (names,)
                    self._wrong(draft, place, message)
        return entry

    def _validated(
        self, draft: _Draft, model: type[ConfigEntry], data: dict[str, Any]
    ) -> tuple[ConfigEntry | None, set[str | int]]:
        """Return the entry, or None, and its wrong keys, for which it has defaults if it can."""
        context = {"folder": draft.source.file.parent}
        try:
            return model.model_validate(data, context=context), set()
        except ValidationError as error:
            places = [one["loc"] for one in error.errors()]
            for one in error.errors():
                self._wrong(draft, one["loc"], explained(one, _keys(model, one["loc"][:-1])))
        wrong = {place[0] for place in places if place}
        try:
            return model.model_validate(_without(data, places), context=context), wrong
        except ValidationError:
            return None, wrong

    def _refer(
        self,
        draft: _Draft,
        data: dict[str, Any],
        key: tuple[str, ...],
        kind: str,
        known: Mapping[str, _Draft],
    ) -> None:
        """Replace references by full ids, and report what is wrong with them."""
        *outer, last = key
        holder = data
        for part in outer:
            if not isinstance(inner := holder.get(part), dict):
                return
            holder[part] = inner = dict(inner)
            holder = inner
        if isinstance(names := holder.get(last), list):
            holder[last] = [
                self._full_id(draft, name, (*key, index), kind, known)
                for index, name in enumerate(names)
            ]
        elif last in holder:
            holder[last] = self._full_id(draft, names, key, kind, known)

    def _full_id(
        self,
        draft: _Draft,
        name: Any,
        key: tuple[str | int, ...],
        kind: str,
        known: Mapping[str, _Draft],
    ) -> Any:
        """Return the full id for a reference; what is not text is left for validation to refuse."""
        if not isinstance(name, str):
            return name
        full = name if ":" in name else f"{draft.namespace}:{name}"
        target = known.get(full)
        if target is None and full not in self._unknown:
            ids = [name for name, other in known.items() if other.kind == kind]
            self._wrong(draft, key, f"there is no entry {full!r}; {nearest(full, ids)}")
        elif target is not None and target.kind != kind:
            self._wrong(draft, key, f"{full!r} is of kind {target.kind}, not {kind}")
        return full

    def _conflicts(self, entries: Mapping[str, ConfigEntry], known: Mapping[str, _Draft]) -> None:
        taken: dict[tuple[str, ...], str] = {}

        def take(entry: ConfigEntry, key: str, what: str, *place: str) -> None:
            if (first := taken.setdefault((key, *place), entry.id)) != entry.id:
                self._wrong(known[entry.id], (key,), f"{what} is already used by {first!r}")

        for entry in entries.values():
            match entry:
                case ServerEntry() if entry.addr.port != 0:
                    take(entry, "addr", f"{entry.addr}", str(entry.addr))
                case EndpointEntry():
                    router = entries.get(entry.meta.router)
                    if isinstance(router, RouterEntry):
                        path = (router.prefix.rstrip("/") + entry.path).rstrip("/") or "/"
                        for method in entry.method:
                            take(
                                entry, "path", f"{method} {path}", router.meta.server, path, method
                            )
                case MetricsEntry():
                    path = entry.path.rstrip("/") or "/"
                    take(entry, "path", f"GET {path}", entry.meta.server, path, "GET")
                case Static():
                    take(entry, "path", entry.path, entry.meta.server, entry.path)


def _placed(draft: _Draft, value: Any) -> Any:
    """Return an option's value; a path (`file://...`) is made absolute."""
    if isinstance(value, str) and value.startswith("file://"):
        return str(draft.source.file.parent / value.removeprefix("file://"))
    return value


def _without(data: Mapping[str, Any], places: Iterable[tuple[str | int, ...]]) -> dict[str, Any]:
    """Return the data without the keys at these places; a list is removed as a whole."""
    rest = dict(data)
    for key, *inner in filter(None, places):
        if inner and isinstance(value := rest.get(str(key)), dict):
            rest[str(key)] = _without(value, [tuple(inner)])
        else:
            rest.pop(str(key), None)
    return rest


def _keys(model: type[BaseModel], key: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the mapping at this place may have."""
    for part in key:
        field = model.model_fields.get(str(part))
        annotation: Any = field and field.annotation
        inner = [annotation, *get_args(annotation)]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return []  # an item of a list, a value of a mapping
        model = models[0]
    return [name for name in model.model_fields if name != "id"]
