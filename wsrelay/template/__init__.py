"""What runs beside the workers of a process host: the template that forks them, its guardian."""

from __future__ import annotations

from .titles import worker_title

__all__ = ["worker_title"]
