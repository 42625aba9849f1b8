"""torch's own optimizers in a recipe: nothing here imports torch before one is built."""
