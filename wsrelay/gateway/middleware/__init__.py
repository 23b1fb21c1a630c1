"""Middleware that a configuration can name (`docs/configuration.md`)."""

from .registry import MIDDLEWARE, check, wrap

__all__ = ["MIDDLEWARE", "check", "wrap"]
