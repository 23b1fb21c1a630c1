"""Configuration files (`docs/configuration.md`), checked as a whole, with all mistakes at once."""

from .configuration import Configuration, EntryLocation
from .entries import (
    Address,
    ConfigEntry,
    EndpointEntry,
    Function,
    Host,
    MetricsEntry,
    PythonProcess,
    RouterEntry,
    ServerEntry,
    ServiceEntry,
    Static,
)
from .load import load
from .problems import ConfigError, ConfigProblem
from .show import rows

__all__ = [
    "Address",
    "ConfigEntry",
    "ConfigError",
    "ConfigProblem",
    "Configuration",
    "EndpointEntry",
    "EntryLocation",
    "Function",
    "Host",
    "MetricsEntry",
    "PythonProcess",
    "RouterEntry",
    "ServerEntry",
    "ServiceEntry",
    "Static",
    "load",
    "rows",
]
