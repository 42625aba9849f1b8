"""Grids of runs: comparing arms over seeds, searching settings on validation data."""
