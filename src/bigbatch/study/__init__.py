"""Studies over many runs: comparisons, critical batches, branches, steps to a target, curvature; and a look at the machine before."""
