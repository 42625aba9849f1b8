"""Eigenvalues, traces and densities of an operator from its products."""
