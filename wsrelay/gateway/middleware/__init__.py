"""Middleware that a configuration names (`docs/configuration.md`)."""

from .registry import MIDDLEWARE, check, wrap

__all__ = ["MIDDLEWARE", "check", "wrap"]
