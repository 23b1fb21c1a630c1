"""Which processes a template may hand over to the node."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wsrelay.node.host.family import Family

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the node looks into /proc")


def test_only_a_child_of_its_and_of_the_host_s_user_may_be_handed_over() -> None:
    with subprocess.Popen(["sleep", "600"]) as child, subprocess.Popen(["true"]) as dead:
        me, user = os.getpid(), os.getuid()
        pidfd, other = os.pidfd_open(child.pid), os.pidfd_open(dead.pid)
        try:
            assert Family(me, 0, user).has(child.pid, pidfd)
            assert Family(0, me, None).has(child.pid, pidfd), "an orphan is its guardian's child"
            assert not Family(me, 0, user + 1).has(child.pid, pidfd)
            assert not Family(me + 1, 0, user).has(child.pid, pidfd)
            assert not Family(me, 0, user).has(dead.pid, pidfd)
            assert Family(me, 0, user).has(child.pid, None)
            assert not Family(me + 1, 0, user).has(child.pid, None)
            assert not Family(me, 0, user).has(child.pid, 0), "that is no pidfd"
            dead.wait()
            assert Family(0, 0, None).has(dead.pid, other), "who was reaped is nobody"
            assert Family(0, 0, None).has(dead.pid, None)
            assert not Family(me, 0, None).has(1, None), "nobody's child"
        finally:
            os.close(pidfd)
            os.close(other)
            child.kill()
