"""The memory of tensors on CPUs: control of what glibc does when they are freed."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MORE_THAN_ANY_TENSOR = 2**31 - 1
_AS_IT_COMES = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}  # where glibc's own adjustment ends

_kept = False


def keep_freed(keep: bool) -> None:
    """Make the heap keep freed memory and hold large tensors, too, or return to glibc's usual settings.

    By default glibc asks the system for memory for each tensor of more than 32 MB, such as ResNet's first layers
    produce for a batch, and the system fills the pages with zeros anew in each step: a training step of ResNet-18 (32
    images, 224 px, 2 cores of an AMD EPYC) took 1.3 to 1.7 times as long in float32 and 1.07 to 1.24 times in bfloat16.
    The price is memory: a peak of 1.7 GB instead of 1.55 GB in a run that trains all of it in bfloat16.
    """
    global _kept
    if keep == _kept:
        return
    _kept = keep
    if mallopt := _of_glibc("mallopt"):
        for setting, usual in _AS_IT_COMES.items():
            mallopt(setting, _MORE_THAN_ANY_TENSOR if keep else usual)


def give_back() -> None:
    """Return freed memory to the system, unless `keep_freed` is in effect.

    After the start of a run of ResNet-18 this is 53 MB, which later allocations do not always fit into. While freed
    memory is kept, nothing is returned: the next step would have its pages filled with zeros again, which takes 0.3 s
    of an epoch of 8 s.
    """
    trim = None if _kept else _of_glibc("malloc_trim")
    if trim:
        trim(0)


@functools.cache
def _of_glibc(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
