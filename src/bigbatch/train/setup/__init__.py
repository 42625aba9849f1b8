"""From a recipe to the objects of a run: model, optimizer, ways of working together, seeds.

May import `train.data` and `train.update.gradient_accumulation`; nothing of the loop, its state or its display.
"""
