"""What a process host may do and use: its options, and the limits and walls made of them."""

from __future__ import annotations

from .cgroup import check as check_cgroup
from .isolation import Filesystem, Isolation, doubts
from .limits import Limits
from .options import HostOptions

__all__ = ["Filesystem", "HostOptions", "Isolation", "Limits", "check_cgroup", "doubts"]
