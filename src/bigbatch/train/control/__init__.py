"""What the next update is: where its batch comes from, where its rate comes from, and what is measured for either.

May import `train.data`, `train.setup`, `train.measure` and `train.state.record`.
"""
