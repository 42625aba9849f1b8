"""Files that can't grow: every write beyond a limit fails half-way, as on a full disk."""

import contextlib
import resource


@contextlib.contextmanager
def limited_files(num_bytes):
    """No file of this process may grow beyond so many bytes. Python ignores the signal, so writes raise `OSError`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
