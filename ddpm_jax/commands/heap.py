"""How a process keeps its memory.

XLA asks the C library for the working memory of a step, and frees it after the step.  On CPUs glibc would give so large
a block back to the system each time, which clears every page of it for the next step: of the training of the CIFAR-10
network that is a fourteenth of the time.  So a process that computes on CPUs keeps what it has freed.
"""

import ctypes
import os
from typing import Any

# The options of mallopt(3), <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def one_heap() -> None:
    """Let all threads share one heap, from which blocks of any size come; before JAX starts its threads."""
    _set(M_ARENA_MAX, 1)


def keep_freed() -> None:
    """Give nothing that is freed back to the system; after `one_heap`."""
    _set(M_MMAP_MAX, 0)  # large blocks come from the heap, too
    _set(M_TRIM_THRESHOLD, -1)


def _set(option: int, value: int) -> None:
    """mallopt, where the C library is GNU's and the environment (MALLOC_..., GLIBC_TUNABLES) does not say otherwise."""
    given = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    library: Any = ctypes.CDLL(None) if os.name == "posix" and not given else None
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(option, value)
