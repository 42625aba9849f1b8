"""The training loops of a run with a parameter server: `server`, `shard_servers` and `worker`.

May import every subpackage of `train`. Messages, the work queue and processes are in `bigbatch.comm.parameter_server`, which knows no task.
"""
