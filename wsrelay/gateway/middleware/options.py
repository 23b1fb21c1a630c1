"""How options of middleware are written: flat keys such as `wsrelay.outbox.limit`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator

from wsrelay.values import durations, sizes

__all__ = ["Duration", "Names", "Options", "Size"]


class Options(BaseModel):
    """Options of one middleware; a key `a.b` of the configuration is the field `a_b`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=lambda name: name.replace("_", "."),
        hide_input_in_errors=True,  # it may be a secret
    )


def _names(value: Any) -> list[str]:
    """Return a list, which may be written as text with commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise ValueError(f"must be a list, or text with commas, not {value!r:.60}")


Names = Annotated[list[str], BeforeValidator(_names)]
Duration = Annotated[float, PlainValidator(durations.parse)]
"""Seconds."""
Size = Annotated[int, PlainValidator(sizes.parse)]
"""Bytes."""
