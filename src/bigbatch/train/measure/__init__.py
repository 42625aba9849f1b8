"""What is measured beside training: scores on held-out data, the curvature of the loss, why a run diverged.

May import `train.setup`, `train.update` and `train.data`.
"""
