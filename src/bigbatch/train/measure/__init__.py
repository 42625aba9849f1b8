"""What is measured beside training: the score on held-out data, the curvature of the loss, why a run diverged.

May import `train.data`, `train.setup` and `train.update`.
"""
