"""What runs beside the workers of a host: the template that forks them, and its guardian."""

from __future__ import annotations

from .titles import worker_title

__all__ = ["worker_title"]
