"""Each option is defined once: configuration, commands and pages have what its definition has."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import click
import pytest
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields
from pydantic import BaseModel

from wsrelay import (
    Filesystem,
    HostOptions,
    Isolation,
    Limits,
    Node,
    RestartPolicy,
    Service,
    from_config,
)
from wsrelay.cli.run import run
from wsrelay.cli.serve import serve
from wsrelay.config import values
from wsrelay.config.entries import KINDS, ConfigEntry, HostFilesystem, HostLimits, Model, Restart
from wsrelay.gateway.deployment import Deployment
from wsrelay.gateway.script import ScriptOptions
from wsrelay.values import durations, sizes
from wsrelay.values.server_options import ServerOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Becomes(NamedTuple):
    """A definition, and the model at this place of an entry that builds it."""

    definition: type[Struct]
    model: type[Model]
    place: str = ""


DEFINITIONS = {
    "process.host": [
        Becomes(HostOptions, KINDS["process.host"]),
        Becomes(Limits, HostLimits, "limits."),
        Becomes(Isolation, KINDS["process.host"]),
        Becomes(Filesystem, HostFilesystem, "filesystem."),
    ],
    "process.service": [
        Becomes(Service, KINDS["process.service"]),
        Becomes(RestartPolicy, Restart, "lifecycle.restart."),
    ],
    "http.service": [Becomes(ServerOptions, KINDS["http.service"])],
}
NESTED = {"limits", "isolation", "filesystem", "restart"}
"""Options that are definitions themselves."""

GIVEN = {"name": "the entry's id", "targets": "the entries that name the host"}
"""Options that an entry gets without a key."""

OWN: dict[str, set[str]] = {
    "process.host": set(),
    "process.service": set(),
    "http.service": {
        "addr",
        "allowed_hosts",
        "health",
        "middleware",
        "options",
        "timeouts.drain",
    },
}
"""Keys that are not options of the definition: an application's, and a listener's."""

CLUSTER = {"servers", "node", "timeout"}
"""What `wsrelay run` says of a cluster; `Cluster` has more, which is for configurations."""

ONLY_CONFIGURED = {
    "isolation",
    "log_rate",
    "mailbox",
    "may_control",
    "may_name",
    "may_spawn",
    "name",
    "nice",
    "preload",
    "spawn_rate",
}
"""Options of a host that `wsrelay run`, which has one host and one script, does not offer."""


class Key(NamedTuple):
    """A key of an entry: how it is written, and what it is when it is left out."""

    annotation: Any
    default: Any


def optional_model(annotation: Any) -> type[BaseModel] | None:
    """The model of `TLS | None` and the like."""
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def keys(model: type[BaseModel], *, inside_optional: bool = False) -> dict[str, Key]:
    """All keys of an entry, dotted. With `inside_optional`, `tls.cert` in place of `tls`."""
    found: dict[str, Key] = {}
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        if issubclass(model, ConfigEntry) and name in ConfigEntry.model_fields:
            continue
        annotation = hints[name]
        section = annotation if isinstance(annotation, type) else None
        if inside_optional:
            section = section or optional_model(annotation)
        if section is not None and issubclass(section, BaseModel):
            inner = keys(section, inside_optional=inside_optional)
            found |= {f"{name}.{key}": value for key, value in inner.items()}
        else:
            default = None if field.is_required() else field.get_default()
            found[name] = Key(annotation, tuple(default) if default == [] else default)
    return found


def options(kind: str) -> Iterator[tuple[str, Key]]:
    """The options of what an entry becomes, each with its key."""
    for definition, model, place in DEFINITIONS[kind]:
        hints = get_type_hints(definition)
        for option in fields(definition):
            key = model.key_of(option.name)
            if key is not None and option.name not in NESTED | set(GIVEN):
                default = None if option.default is NODEFAULT else option.default
                yield place + key, Key(hints[option.name], default)


def plain(annotation: Any) -> set[Any]:
    """The types that values may have, paths as text and lists as tuples."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(plain, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(one) for one in get_args(annotation)}
    if get_origin(annotation) in (list, tuple):
        return {tuple}
    return {str if annotation is Path else annotation}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_an_option_has_a_key_of_its_type_and_with_its_default(kind: str) -> None:
    there = keys(KINDS[kind], inside_optional=True)
    for name, option in options(kind):
        assert name in there, f"{name} cannot be configured"
        assert there[name].default == option.default, name
        assert plain(there[name].annotation) <= plain(option.annotation), name


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_key_is_an_option_of_what_its_entry_becomes(kind: str) -> None:
    there = set(keys(KINDS[kind], inside_optional=True))
    assert there - {name for name, _ in options(kind)} == OWN[kind]


def test_a_key_elsewhere_and_an_option_without_one_are_options_that_exist() -> None:
    for becomes in DEFINITIONS.values():
        names = {name for one in becomes for name in one.definition.__struct_fields__}
        for one in becomes:
            assert set(one.model.elsewhere) <= names


# The pages


def section(page: str, title: str) -> str:
    """What stands below a heading, up to the next one."""
    _, found, rest = (DOCS / page).read_text().partition(f"\n{title}\n")
    assert found, f"{page} has no section {title!r}"
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str, *columns: str) -> dict[str, list[str]]:
    """The rows of the first table by the names in their first cell, each with its other cells.

    Cells with commas have a value for each of the names.
    """
    heading = f"| {' | '.join(columns)} | |\n"
    assert heading in text, f"no table with the columns {columns}"
    found: dict[str, list[str]] = {}
    for line in text.partition(heading)[2].splitlines()[1:]:
        if not line.startswith("|"):
            break
        # No cell has a bar in it but those of code, which are in the last one.
        cells = [cell.strip() for cell in line.strip("|").split("|", len(columns))]
        names = re.findall(r"`([^`]+)`", cells[0])
        for index, name in enumerate(names):
            assert name not in found, f"{name} stands in two rows"
            each = [cell.split(", ") for cell in cells]
            found[name] = [
                parts[index] if len(parts) == len(names) else cell
                for parts, cell in zip(each[1:-1], cells[1:-1], strict=True)
            ] + [cells[-1]]
    return found


TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "mapping",
    Literal: "text",
    values.Duration: "duration",
    values.Size: "size",
    values.UserName: "text",
    values.Umask: "text",
    values.Folder: "folder",
    values.AddressText: "text",
    values.HostNames: "list",
}


def shown_type(kind: str, name: str, annotation: Any) -> str:
    """How the page names the type of a key."""
    if optional_model(annotation):
        return "mapping"
    [annotation] = [
        one
        for one in (get_args(annotation) if is_union(annotation) else [annotation])
        if one is not types.NoneType
    ]
    if annotation is str and (name,) in KINDS[kind].references:
        return "entry"
    return TYPES[annotation if annotation in TYPES else get_origin(annotation)]


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


READ: dict[str, Callable[[str], Any]] = {
    "duration": durations.parse,
    "size": sizes.parse,
    "number": float,
    "whole number": int,
    "true or false": {"true": True, "false": False}.__getitem__,
}


def is_shown(cell: str, type_: str, default: Any, *, required: bool) -> bool:
    """Whether a cell says what a key is when it is left out."""
    if default is None:
        return (
            cell == "" if required else cell in {"none", "all", "the node's", "that of `process`"}
        )
    if type_ in READ:
        return bool(READ[type_](cell.strip("`")) == default)
    return cell == f"`{'[]' if default == () else default}`"


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_table_of_a_kind_has_its_keys_with_their_types_and_defaults(kind: str) -> None:
    table = rows(section("configuration.md", f"### `{kind}`"), "key", "type", "default")
    there = keys(KINDS[kind])
    assert set(table) == set(there)
    for name, key in there.items():
        type_, default, text = table[name]
        assert type_ == shown_type(kind, name, key.annotation), name
        field = KINDS[kind].model_fields.get(name)
        required = field is not None and field.is_required()
        assert is_shown(default, type_, key.default, required=required), f"{name}: not {default}"
        if (model := optional_model(key.annotation)) is not None:
            assert all(inner in text for inner in model.model_fields), name


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(DEFINITIONS)))
def test_the_text_about_a_kind_without_a_table_has_its_keys(kind: str) -> None:
    text = section("configuration.md", f"### `{kind}`")
    names = set(KINDS[kind].model_fields) - set(ConfigEntry.model_fields)
    assert [name for name in names if not re.search(rf"`{name}[`:]", text)] == []


# The command line

OPTIONS = {
    option.name: option
    for option in run.params
    if isinstance(option, click.Option) and option.name is not None
}
NAMES = {argument.name for argument in run.params} | {"targets", "limits"}


def test_the_command_offers_the_options_of_a_script_and_those_of_a_host() -> None:
    assert set(ScriptOptions.__struct_fields__) - NAMES == {"entry"}  # of a cluster
    assert set(HostOptions.__struct_fields__) - NAMES == ONLY_CONFIGURED
    defined = {*ScriptOptions.__struct_fields__, *HostOptions.__struct_fields__, "memory"}
    others = {"host", "port", "metrics", "reload", "log_format", "log_level", *CLUSTER}
    assert set(OPTIONS) - defined == others


def test_an_option_of_the_command_has_the_default_of_its_definition() -> None:
    given = run.make_context("run", ["script.py"]).params
    differs = {
        option.name: given[option.name]
        for definition in (ScriptOptions, HostOptions)
        for option in fields(definition)
        if option.name in OPTIONS and given[option.name] != option.default
    }
    # Which hosts are allowed depends on the address; who tries a script waits for no 10 s.
    assert differs == {"allowed_hosts": None, "stop_timeout": 2.0}


def test_the_table_of_the_command_has_its_options_with_their_defaults() -> None:
    table = rows((DOCS / "command-line.md").read_text(), "option", "default")
    assert table.pop("-- --model x")[0] == ""
    assert set(table) == {name for option in OPTIONS.values() for name in option.opts}
    for option in OPTIONS.values():
        cell = table[option.opts[0]][0]
        if option.is_flag:
            assert cell == "off", option.name
        elif option.show_default:
            assert cell == f"`{option.default}`", option.name
        else:
            assert cell not in ("", "off"), option.name
            assert "`" not in cell, option.name


def test_a_node_is_called_the_same_wherever_it_gets_its_name() -> None:
    commands = [run.make_context("run", ["script.py"]), serve.make_context("serve", [])]
    names = [context.params["node"] for context in commands]
    makers = (from_config, Deployment)
    names += [inspect.signature(one).parameters["name"].default for one in makers]
    assert names == [None] * 4
    assert Node().name == "local"
