"""Types of values: durations, sizes, paths, addresses, each parsed from its text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import PlainValidator, ValidationInfo

from wsrelay.session.hosts import Hosts
from wsrelay.values import addresses, durations, sizes
from wsrelay.values.addresses import Address

__all__ = [
    "Address",
    "AddressText",
    "AnyPath",
    "Duration",
    "Folder",
    "HTTPPath",
    "HostNames",
    "Identifier",
    "Methods",
    "ModuleName",
    "Script",
    "SecretFile",
    "Size",
    "Umask",
    "UserName",
]

_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_UMASK: Final = re.compile("[0-7]{3,4}")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}")  # noqa: TRY004 - pydantic catches this one
    return value


def _path(value: Any, info: ValidationInfo) -> Path:
    return Path(_base(info), _text(value).removeprefix("file://"))


def _base(info: ValidationInfo) -> Path:
    """Return the folder of the file that is being read."""
    context: Any = info.context
    folder: Path = context["folder"]
    return folder


def _file(value: Any, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def _script(value: Any, info: ValidationInfo) -> Path:
    if not _text(value).startswith("file://"):
        raise ValueError(f"{value!r} is not of the form 'file://path/to/script.py'")
    if not value.endswith(".py"):
        raise ValueError(f"{value!r} is not a Python script: its name does not end with .py")
    return _file(value, info)


def _folder(value: Any, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.is_dir():
        raise ValueError(f"{path} {'is not a folder' if path.exists() else 'does not exist'}")
    return path


def _any_path(value: Any, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    return path


def _umask(value: Any) -> int:
    # A number would be ambiguous: YAML reads 027 as octal and 27 as decimal.
    if not isinstance(value, str) or _UMASK.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a umask; write it in quotes, as in '027'")
    return int(value, 8)


def _user(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    if not text:
        raise ValueError("must not be empty")
    return text


def _address(value: Any, info: ValidationInfo) -> Address:
    text = str(value) if isinstance(value, int) else _text(value)
    return addresses.parse(text, _base(info))


def _http_path(value: Any) -> str:
    if not _text(value).startswith("/"):
        raise ValueError(f"{value!r} does not start with /")
    return str(value)


def _host_names(value: Any) -> str:
    names = value if isinstance(value, list) else [value]
    text = ", ".join(_text(name) for name in names)
    Hosts(text)  # raises ValueError
    return text


def _identifier(value: Any) -> str:
    if not _text(value).isidentifier():
        raise ValueError(f"{value!r} is not a function name")
    return str(value)


def _module(value: Any) -> str:
    if _MODULE.fullmatch(_text(value)) is None:
        raise ValueError(f"{value!r} is not a module name like 'package.module'")
    return str(value)


def _methods(value: Any) -> list[str]:
    names = [_text(name).upper() for name in (value if isinstance(value, list) else [value])]
    for name in names:
        if name not in _METHODS:
            raise ValueError(f"{name!r} is not one of {', '.join(_METHODS)}")
    if not names:
        raise ValueError("names no method")
    return names


Duration = Annotated[float, PlainValidator(durations.parse)]
"""Seconds."""
Size = Annotated[int, PlainValidator(sizes.parse)]
"""Bytes."""
Script = Annotated[Path, PlainValidator(_script)]
SecretFile = Annotated[Path, PlainValidator(_file)]
Folder = Annotated[Path, PlainValidator(_folder)]
AnyPath = Annotated[Path, PlainValidator(_any_path)]
Umask = Annotated[int, PlainValidator(_umask)]
UserName = Annotated[str, PlainValidator(_user)]
"""A user's or group's name or number."""
AddressText = Annotated[Address, PlainValidator(_address)]
HostNames = Annotated[str, PlainValidator(_host_names)]
"""Patterns separated by commas, which may also be written as a list."""
HTTPPath = Annotated[str, PlainValidator(_http_path)]
Identifier = Annotated[str, PlainValidator(_identifier)]
ModuleName = Annotated[str, PlainValidator(_module)]
Methods = Annotated[list[str], PlainValidator(_methods)]
