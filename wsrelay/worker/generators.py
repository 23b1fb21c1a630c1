"""Random generators made before the fork: no two workers may draw the same numbers from them.

`random` reseeds its global generator after a fork by itself. For others, see `watched`.
"""

from __future__ import annotations

import contextlib
import gc
import random
import secrets
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["renew", "watched"]

_renewals: list[Callable[[], object]] = []


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Record the generators that are made meanwhile without a seed, for `renew`.

    These are `random.Random()`, numpy's `default_rng()`, `RandomState()` and bit generators. A
    generator that is given a seed is meant to give the same numbers each time, and does.
    """
    unseeded: weakref.WeakSet[random.Random] = weakref.WeakSet()
    drawn: set[int] = set()
    seed, randbits = random.Random.seed, secrets.randbits

    def noting_seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed(self, a, version)
        (unseeded.add if a is None else unseeded.discard)(self)

    def noting_randbits(k: int) -> int:
        # numpy draws a seed with this, and keeps it in the generator that it makes from it.
        value = randbits(k)
        drawn.add(value)
        return value

    random.Random.seed = noting_seed  # type: ignore[method-assign]
    secrets.randbits = noting_randbits
    try:
        yield
    finally:
        random.Random.seed = seed  # type: ignore[method-assign]
        secrets.randbits = randbits
        _renewals.extend(generator.seed for generator in unseeded)
        numpy: Any = sys.modules.get("numpy.random.bit_generator")
        if numpy is not None:
            numpy.randbits = randbits
            for found in gc.get_objects():
                if isinstance(found, numpy.BitGenerator):
                    # RandomState(seed) has none, and in old versions no generator has one.
                    origin = getattr(found, "seed_seq", None)
                    if origin is not None and getattr(origin, "entropy", None) in drawn:
                        _renewals.append(_renewal(found))


def _renewal(bits: Any) -> Callable[[], object]:
    def renewal() -> None:
        bits.state = type(bits)().state

    return renewal


def renew() -> None:
    """Reseed them, so that this fork draws different numbers from every other."""
    for renewal in _renewals:
        renewal()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
