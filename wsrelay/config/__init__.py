"""Configuration files (`docs/configuration.md`): read, checked as a whole, all mistakes at once."""

from .configuration import Configuration, Where
from .entries import (
    Address,
    Endpoint,
    Entry,
    Function,
    Host,
    PythonProcess,
    Router,
    Server,
    Service,
    Static,
)
from .load import load
from .problems import ConfigError, Problem
from .show import rows

__all__ = [
    "Address",
    "ConfigError",
    "Configuration",
    "Endpoint",
    "Entry",
    "Function",
    "Host",
    "Problem",
    "PythonProcess",
    "Router",
    "Server",
    "Service",
    "Static",
    "Where",
    "load",
    "rows",
]
