"""Which law do the best rates follow? Those of studies/steps against the batch: powers of it, and the step length of Lian et al. 2015.

    python studies/discussion/laws.py

Lian et al. 2015, arXiv:1506.08272, Theorem 1 and Corollary 2: with K updates of M samples each, of a loss with curvature at most L and
noise sigma^2 a sample, that may fall by D, the bound is least at a constant rate that is limited by curvature when M is large and by noise
when it is small; both together: 1/eta = a + c sqrt(K/M), a like L and c like sigma/sqrt(D). The rate is the effective one, lr/(1 -
momentum), and K the measured updates to the target. Each law is fitted to log eta by least squares; printed is the root mean square of what
is left.
"""

import json
import math
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

HERE = Path(__file__).parent
RESULTS = HERE.parent / "steps" / "results"


def points_of(study):
    """Batches, updates to the target, and best effective rates."""
    best = [(point["global_batch"], point["best"]) for point in study["points"] if point["best"] is not None]
    rates = [b["values"]["optimizer.lr"] / (1 - b["values"].get("optimizer.momentum", 0.0)) for _, b in best]
    return np.array([float(batch) for batch, _ in best]), np.array([float(b["updates"]) for _, b in best]), np.array(rates)


def left(predicted, rates):
    """Root mean square of log eta, measured less predicted, in per cent."""
    return 100 * math.sqrt(np.mean(np.square(np.log(rates) - np.log(predicted))))


def fits_of(batches, updates, rates):
    """Per cent that each law leaves, and its parameters."""
    found = {}
    for name, power in (("constant", 0.0), ("root", 0.5), ("linear", 1.0)):
        level = math.exp(np.mean(np.log(rates) - power * np.log(batches)))
        found[name] = {"left": left(level * batches**power, rates), "level": level}
    power, offset = np.polyfit(np.log(batches), np.log(rates), 1)
    found["power"] = {"left": left(np.exp(offset) * batches**power, rates), "power": float(power)}

    def law(at):
        return 1 / (math.exp(at[0]) + math.exp(at[1]) * np.sqrt(updates / batches))

    starts = [(-math.log(rates.max()), math.log(1 / rates.min() / math.sqrt(updates[0] / batches[0])) + shift) for shift in (-2, 0, 1)]
    fits = [least_squares(lambda at: np.log(law(at)) - np.log(rates), start, bounds=(-20, 20)) for start in starts]
    best = min(fits, key=lambda fit: fit.cost)
    found["lian"] = {"left": left(law(best.x), rates), "a": math.exp(best.x[0]), "c": math.exp(best.x[1])}
    return found


def main():
    table = {}
    for path in sorted(RESULTS.glob("*.json")):
        study = json.loads(path.read_text())
        batches, updates, rates = points_of(study)
        if len(batches) >= 4:
            table[path.stem] = fits_of(batches, updates, rates)
    (HERE / "laws.json").write_text(json.dumps(table, indent=2) + "\n")
    print("| study | constant | root | linear | free power | 1/(a + c sqrt(K/M)) |")
    print("|---|---|---|---|---|---|")
    for name, fits in table.items():
        cells = [f"{fits[law]['left']:.0f} %" for law in ("constant", "root", "linear", "power", "lian")]
        cells[3] += f" (B^{fits['power']['power']:.2f})"
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
