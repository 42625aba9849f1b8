"""From sample indices to micro-batches on the device: order, shares of workers, sizes of passes, loading, precision, augmentation.

Imports nothing else of `train`.
"""
