"""Gives the memory of large blocks back at once, and keeps the search for garbage from stopping all threads.

>>> return_large_blocks()
"""

import ctypes
import gc
import os
from typing import Final

_LARGE_BYTES: Final = 2**20
"""A leaf of 256 pixels needs no block of this size, so its answer takes no longer. With 128 KB it takes 1 ms more."""

_M_MMAP_THRESHOLD: Final = -3
"""The option's number in `malloc.h` of the GNU C library."""


def return_large_blocks() -> None:
    """Let this process keep no freed block of 1 MB or more, such as a body or a decoded image.

    Without this, the GNU C library keeps blocks of up to 32 MB once it has freed one of that size. Small blocks between
    them then keep it from using them again or returning them. Does nothing with another C library.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def exempt_from_collection() -> None:
    """Let Python's garbage collector skip all objects that exist now, until `gc.unfreeze()`.

    A full collection stops every thread. With MLflow and a database in SQLite it visits 330,000 objects, which takes
    0.13 s, and they live as long as the process. Reference counts still free them; only a cycle among them is kept.
    """
    gc.collect()
    gc.freeze()
