"""What outlives an update: the run's folder, its checkpoints, its record, its result, and requests to stop.

May import `train.measure`, `train.setup`, `train.update` and `train.data`.
"""
