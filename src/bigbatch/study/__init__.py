"""Grids of runs: comparing arms over seeds, searching settings on validation data; and a look at the machine before them."""
