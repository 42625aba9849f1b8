"""How often do 95 % intervals of the noise scale in the optimizer's norm hold the truth, and what do squares and the plug-in give?

    python benchmarks/dual_norm_coverage.py [--repeats 1000]

Gaussian gradients of d parameters with equal mu / sigma, 4 groups of 16 samples a look, 60 or 200 looks in a row. The truth is the model's
at the batches of the two measurements, from D(b) = sum |mu| erf(|mu| sqrt(b / 2) / sigma) in l1, and the simple noise scale, d sigma^2 /
|mu|^2, in the euclidean norm. Three ways: products of two looks in a row, as shipped; squares of each look, which have the variance of D
in them; and the paper's plug-in, mean over looks. Written for each: coverage with its binomial standard error, the median estimate, the
share of intervals without an upper bound. Writes dual_norm_coverage.json beside this script.
"""

import argparse
import json
import math
import subprocess
from pathlib import Path

import numpy as np

from bigbatch.noise.interval import ratio_of_means
from bigbatch.train.state.record import environment

GROUPS, SAMPLES = 4, 16
SMALL, LARGE = SAMPLES, (GROUPS - 1) * SAMPLES
CASES = [("l1", 100, 0.2), ("l1", 100, 0.1), ("l1", 1000, 0.1), ("l1", 1000, 0.05), ("euclidean", 1000, 0.2), ("euclidean", 1000, 0.1)]
C4 = 0.921318  # of four values


def truth_of(norm, mu):
    if norm == "euclidean":
        return 1 / mu**2
    p, q = (math.erf(mu * math.sqrt(b / 2)) ** 2 for b in (SMALL, LARGE))
    return (q - p) / (p / SMALL - q / LARGE)


def alignments(rng, norm, looks, d, mu):
    """D1, D2 and the plug-in of each look."""
    g = mu + rng.standard_normal((looks, GROUPS, d), dtype=np.float32) / np.float32(math.sqrt(SAMPLES))
    o = (g.sum(1, keepdims=True) - g) / (GROUPS - 1)
    mean, variance = g.mean(1), SAMPLES * g.var(1, ddof=1)
    if norm == "l1":
        plug_in = (np.sqrt(variance).sum(1) / C4 / np.abs(mean).sum(1)) ** 2
        return (o * np.sign(g)).sum(2).mean(1), (g * np.sign(o)).sum(2).mean(1), plug_in
    products = (g * o).sum(2)
    lengths = [np.sqrt((x * x).sum(2)) for x in (g, o)]
    return (products / lengths[0]).mean(1), (products / lengths[1]).mean(1), variance.sum(1) / (mean**2).sum(1)


def case(rng, norm, d, mu, looks, repeats):
    truth, found = truth_of(norm, mu), {"products of two looks": [], "squares of each look": []}
    plugs = []
    for _ in range(repeats):
        d1, d2, plug_in = (x.astype(float) for x in alignments(rng, norm, looks, d, mu))
        plugs.append(plug_in.mean())
        for name, (p, q) in zip(found, ((d1[1:] * d1[:-1], d2[1:] * d2[:-1]), (d1 * abs(d1), d2 * abs(d2))), strict=True):
            found[name].append(ratio_of_means(q - p, p / SMALL - q / LARGE))
    row = {"norm": norm, "parameters": d, "mu / sigma": mu, "looks": looks, "truth": round(truth, 1)}
    row["plug-in"] = round(float(np.mean(plugs)), 1)
    for name, intervals in found.items():
        coverage = float(np.mean([i.lower <= truth <= i.upper for i in intervals]))
        row[name] = {
            "coverage": round(coverage, 3),
            "standard_error": round(math.sqrt(coverage * (1 - coverage) / repeats), 4),
            "median": round(float(np.nanmedian([i.value for i in intervals])), 1),
            "no_upper_bound": round(float(np.mean([math.isinf(i.upper) for i in intervals])), 3),
        }
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    for looks in (60, 200):
        for norm, d, mu in CASES:
            rows.append(case(rng, norm, d, mu, looks, arguments.repeats))
            print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"repeats": arguments.repeats, "seed": 0, "commit": commit, "environment": environment(), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
