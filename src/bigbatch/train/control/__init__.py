"""What the next update is: a source of its batch, a source of its rate, and measurements, each alone and any with any.

`control` composes them, `build` makes them of a recipe. May import `train.state` and all below it: `measure`, `setup`, `update`, `data`.
"""
