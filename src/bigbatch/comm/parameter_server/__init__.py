"""A parameter server, and workers that pull weights from it and push gradients to it: messages, the queue of work, and the methods.

It knows tensors but no task; the training loops are in `bigbatch.train.parameter_server`. May import `comm.launch`.
"""
