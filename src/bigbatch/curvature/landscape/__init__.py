"""The loss around and between weights: sharpness in its several meanings, and paths."""
