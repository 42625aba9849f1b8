"""Tensors that begin where a cache line does, so that matrix products round alike wherever memory was to be had.

On a CPU, MKL adds up a product's terms in an order that follows the addresses of its factors unless `MKL_CBWR` is set
(https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/current/obtaining-numerically-reproducible-results.html asks for
64 bytes); torch's own allocations are aligned so, but pieces cut out of a larger tensor and memory that numpy made need not be.
"""

from torch import Tensor

BYTES = 64


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if it begins at a multiple of 64 bytes, else a copy that does.

    >>> import torch
    >>> whole = torch.arange(100.0)
    >>> aligned(whole) is whole, aligned(whole[16:]).data_ptr() == whole[16:].data_ptr(), aligned(whole[3:]).data_ptr() % 64
    (True, True, 0)
    """
    return tensor.clone() if tensor.data_ptr() % BYTES else tensor
