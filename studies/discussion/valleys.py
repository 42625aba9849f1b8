"""Does a step on the mean of two directions lose what each knew? Two valleys in the plane.

    python studies/discussion/valleys.py

Two halves of the data have losses of their own, each with a valley along a line: L_A is least where y = x, L_B where y = -x, both steep
across and bounded far away: L = 1 - exp(-d^2 / 2 s^2) with d the distance from the valley, plus a gentle slope to a common goal at (3, 0).
From one start, three ways to use both: steps on the mean gradient; each alone for a while and then the mean of the two weights; steps on
one half in turn. Prints the mean loss where each ends, by the length of a step, and writes valleys.json.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GOAL, WIDTH, SLOPE = np.array([3.0, 0.0]), 0.5, 0.02
NORMALS = {"A": np.array([1.0, -1.0]) / 2**0.5, "B": np.array([1.0, 1.0]) / 2**0.5}
START = np.array([-2.0, 0.6])
LENGTHS = (0.05, 0.3, 1.0, 3.0)
STEPS = 400


def loss(w, half):
    """Of one half of the data."""
    across = (w @ NORMALS[half]) ** 2 / (2 * WIDTH**2)
    return 1 - np.exp(-across) + SLOPE * np.sum((w - GOAL) ** 2)


def gradient(w, half):
    """Of one half of the data."""
    n = NORMALS[half]
    d = w @ n
    return np.exp(-(d**2) / (2 * WIDTH**2)) * d / WIDTH**2 * n + 2 * SLOPE * (w - GOAL)


def mean_loss(w):
    """Of all data."""
    return float((loss(w, "A") + loss(w, "B")) / 2)


def mean_gradient(length):
    """Steps on the mean of the two gradients: gradient descent on the mean loss."""
    path = [START]
    for _ in range(STEPS):
        path.append(path[-1] - length * (gradient(path[-1], "A") + gradient(path[-1], "B")) / 2)
    return path


def alone(length, half, steps, start=START):
    """Steps on one half's gradient."""
    path = [start]
    for _ in range(steps):
        path.append(path[-1] - length * gradient(path[-1], half))
    return path


def mean_of_weights(length, period):
    """Two workers, each on its half for `period` steps, then at the mean of their weights; again and again."""
    path = [START]
    for _ in range(STEPS // period):
        path.append((alone(length, "A", period, path[-1])[-1] + alone(length, "B", period, path[-1])[-1]) / 2)
    return path


def in_turn(length):
    """One half after the other."""
    path = [START]
    for step in range(STEPS):
        path.append(path[-1] - length * gradient(path[-1], "AB"[step % 2]))
    return path


def table():
    """Where each way ends, by the length of a step."""
    return {
        length: {
            "the mean gradient": mean_loss(mean_gradient(length)[-1]),
            "one half in turn": mean_loss(in_turn(length)[-1]),
            "mean of weights every 4 steps": mean_loss(mean_of_weights(length, 4)[-1]),
            "mean of weights every 100 steps": mean_loss(mean_of_weights(length, 100)[-1]),
            "A alone": mean_loss(alone(length, "A", STEPS)[-1]),
        }
        for length in LENGTHS
    }


def main():
    found = table()
    (HERE / "valleys.json").write_text(json.dumps(found, indent=2) + "\n")
    for length, ends in found.items():
        print(f"step {length:g}: " + ", ".join(f"{name} {value:.3f}" for name, value in ends.items()))


if __name__ == "__main__":
    main()
