"""Memory settings that make eager training on a Linux CPU nearly twice as fast.

glibc gives every large tensor fresh pages from the kernel and hands them back when it is freed; training then spends
about half of its time on page faults. These thresholds keep the pages. glibc reads them once, when a process starts.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
_MARK = "FAIRWEATHER_MALLOC"


def tuned(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment keeps its pages, or has another allocator or another system."""
    return platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in environment or set(MALLOC) <= set(environment)


def restart_tuned() -> None:
    """Start this program once more, in this process's place, with the settings; does nothing where they are set.

    For the command line alone, before torch is imported: whatever the program has done so far is done again.
    """
    if tuned(os.environ) or _MARK in os.environ:
        return
    environment = {**MALLOC, **os.environ, _MARK: "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
