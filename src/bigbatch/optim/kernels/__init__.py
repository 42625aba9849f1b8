"""Steps as a few Triton kernels over all tensors of a batch, on CUDA; everywhere else the `torch._foreach_*` path makes the same step.

The modules of this package that hold kernels import triton, which comes with torch's CUDA builds; only `launch` imports them, when the
first step on such a device is made.
"""
