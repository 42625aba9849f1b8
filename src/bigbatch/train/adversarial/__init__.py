"""Where `bigbatch.adversarial` meets the loop: updates with adversarial examples beside their samples, or in the place of some.

May import `train.state` and all below it: `measure`, `setup`, `update`, `data`.
"""
