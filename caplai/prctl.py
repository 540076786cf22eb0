"""What we ask of the kernel for our own process (prctl(2)); Linux only."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec there is no place for it


def end_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when our parent process ends, however it ends; end now if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def keep_memory_private() -> None:
    """Leave no core dump, and let no debugger of our own user in: keys and passwords are in this memory.

    It holds until an exec. A limit of the core's size would not do: where cores are piped to a program the kernel
    passes it over.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
