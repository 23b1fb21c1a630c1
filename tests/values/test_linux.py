"""What the operating system and the C library offer beyond Python."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
from wsrelay.values import linux

def exchange():
    messages = [b"x" * (1 << 20) for _ in range(8)]

if sys.argv[1] == "kept":
    linux.keep_freed_memory()
for _ in range(5):
    exchange()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    exchange()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    arguments = [sys.executable, "-c", PAGES, how]
    return int(subprocess.run(arguments, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has mallopt")
def test_large_buffers_get_the_pages_of_those_before_them() -> None:
    assert page_faults("given back") > 20 * 8 * 100
    assert page_faults("kept") < 100
