"""Runs with a parameter server: servers run the trainer's own loop (`server`, `shard_servers`), workers compute gradients (`worker`).

May import every subpackage of `train`, and the loop. Messages, the work queue and processes are in `bigbatch.comm.parameter_server`, which
knows no task.
"""
