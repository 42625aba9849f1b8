"""A parameter server, and workers that pull weights from it and push gradients to it: messages, the sharing-out of work, and the rules.

Knows tensors and no task; the loops are `bigbatch.train.parameter_server`. May import `comm.launch`.
"""
