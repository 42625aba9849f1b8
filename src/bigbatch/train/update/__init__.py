"""How one update's gradient is made: its micro-batches, gradient accumulation, running statistics of batch norm.

May import `train.data`.
"""
