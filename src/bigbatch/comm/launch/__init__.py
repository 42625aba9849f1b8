"""Launching the processes of a run, reporting how they exit, and a preflight test. Imports nothing else of `comm`."""
