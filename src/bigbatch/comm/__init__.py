"""How workers agree: who takes part, what happens to gradients before a step, and what happens to weights after it."""
