"""Local steps: each worker takes several updates of its own between two exchanges of weights, which an outer optimizer may follow.

May import `comm.all_reduce`, `comm.compression`, `comm.model_averaging`, `comm.ranks` and `comm.gossip`.
"""
