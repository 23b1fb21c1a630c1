"""Middleware that a configuration names (contract section 4)."""

from .registry import MIDDLEWARE, check, wrap

__all__ = ["MIDDLEWARE", "check", "wrap"]
