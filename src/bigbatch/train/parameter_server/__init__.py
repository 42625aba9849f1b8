"""The loops of a run with a parameter server: servers (`serve`, `servers`) and workers (`work`).

May import every room of `train`. Messages, sharing-out of work and processes are `bigbatch.comm.parameter_server`, which knows no task.
"""
