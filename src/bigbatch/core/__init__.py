"""What every family needs and no paper owns: citations, checks, the clock, metrics; files, hardware and tensors in rooms of their own."""
