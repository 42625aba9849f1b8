"""How one update's gradient is made: accumulation over micro-batches, adversarial examples, running statistics of batch norm.

May import `train.data` and `train.setup`.
"""
