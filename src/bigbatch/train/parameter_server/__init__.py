"""Runs with a parameter server: servers run the trainer's own loop (`serve`, `servers`), workers compute gradients for them (`work`).

May import every room of `train`, and the loop. Messages, sharing-out of work and processes are `bigbatch.comm.parameter_server`, which
knows no task.
"""
