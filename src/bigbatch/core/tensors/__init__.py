"""Tensors in many shapes: norms, sums, averages, groups of parameters, matrices, shards and structures."""
