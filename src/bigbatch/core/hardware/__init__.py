"""The machine that computes: its cores, devices and kernels, and what the last bits of a run depend on."""
