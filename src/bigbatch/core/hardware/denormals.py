"""Denormal numbers: those below the smallest normal one (1.2e-38 in float32), with which processors compute several times slower.

Gradients of a recurrent network fade into them. torch can have the processor take them for zero, in the calling thread alone; a thread that
is begun takes that over. So ask before torch has worked: else some of its threads round otherwise than others. The command line asks at
once; `fit` in a program of yours does not.
"""

import torch

SMALLEST_NORMAL = 2.0**-126
"""Of float32."""


def flush_denormals(flush: bool = True) -> None:
    """Take denormal numbers for zero, in this thread and those it begins from now on; nothing where the processor can't."""
    torch.set_flush_denormal(flush)


def flushes_denormals() -> bool:
    """Whether this thread takes denormal numbers for zero.

    >>> flush_denormals(False)
    >>> flushes_denormals()
    False
    """
    return float(torch.tensor(SMALLEST_NORMAL).mul(0.5)) == 0.0
