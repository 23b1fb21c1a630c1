"""Preloaded in a template: the system lets it fork twice and no more."""

import errno
import os

_fork, _left = os.fork, [2]


def _scarce() -> int:
    if not _left[0]:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    _left[0] -= 1
    return _fork()


os.fork = _scarce
