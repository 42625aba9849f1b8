"""Recipes: what a run computes, as a value."""

from bigbatch.recipe.recipe import Recipe, recipe_names

__all__ = ["Recipe", "recipe_names"]
