"""What every family needs and no paper owns: citations, checks, the clock, norms, averages, parameter groups, files."""
