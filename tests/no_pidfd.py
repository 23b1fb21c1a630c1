"""Preloaded by a test's template: makes the platform one without pidfds."""

import os

if hasattr(os, "pidfd_open"):
    del os.pidfd_open
