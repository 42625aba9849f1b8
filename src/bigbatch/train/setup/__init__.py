"""From a recipe to the objects of a run: model, optimizer, a way of working together, seeds.

May import `train.data` and `train.update`.
"""
