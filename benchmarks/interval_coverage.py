"""How often do 95 % intervals hold the truth? The noise scale's under steady, heavy-tailed and drifting gradients; the critical batch's.

    python benchmarks/interval_coverage.py [--repeats 400]

Noise scale: per-sample gradients of 20 dimensions around a mean of length 1 (times a log-normal first-order autoregression where it
drifts), 4 groups of 16 samples an update (2 with heavy tails: a multivariate t of 3 degrees); the truth is 30 samples. Written beside each
coverage: the share of intervals with a doubt said, the coverage of those without, and the median of log(upper / lower).
Critical batch: eight batches around 1,000 samples, seeds that scatter by 0.08 in log updates, batches shifted by sd 0 or 0.15.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np

from bigbatch.noise.critical_batch import Run, fit_critical_batch
from bigbatch.noise.interval import doubt_of, ratio_of_means
from bigbatch.train.state.record import environment

TRUTH, DIMENSIONS = 30.0, 20


def autoregression(rng, n, phi, sd=0.5):
    walk = np.empty(n)
    walk[0] = rng.standard_normal()
    for i in range(1, n):
        walk[i] = phi * walk[i - 1] + np.sqrt(1 - phi**2) * rng.standard_normal()
    return np.exp(sd * walk - sd**2 / 2)


def updates(rng, n, *, phi=0.0, heavy=False):
    """Unbiased signal and noise of n updates."""
    groups, b = 4, 2 if heavy else 16
    sizes = np.sqrt(autoregression(rng, n, phi) if phi else np.ones(n))
    e = rng.standard_normal((n, groups, b, DIMENSIONS))
    if heavy:  # one length a sample, of Student's t with 3 degrees
        e /= np.sqrt(rng.chisquare(3, (n, groups, b, 1)))
    mean = (sizes / np.sqrt(DIMENSIONS))[:, None, None] + e.mean(2) * np.sqrt(TRUTH / DIMENSIONS)
    local, whole, B = (mean**2).sum(2).mean(1), (mean.mean(1) ** 2).sum(1), groups * b
    return (B * whole - b * local) / (B - b), (local - whole) / (1 / b - 1 / B)


def noise_scale(rng, repeats, n, **kind):
    hits, widths, doubts = [], [], []
    for _ in range(repeats):
        signal, noise = updates(rng, n, **kind)
        _, lower, upper = ratio_of_means(noise, signal)
        hits.append(bool(lower <= TRUTH <= upper))
        widths.append(float(np.log(upper / lower)) if lower > 0 else np.inf)
        doubts.append(bool(doubt_of(noise, signal)))
    sure = [hit for hit, doubt in zip(hits, doubts, strict=True) if not doubt]
    return {
        "coverage": round(float(np.mean(hits)), 3),
        "doubted": round(float(np.mean(doubts)), 3),
        "coverage_without_doubt": round(float(np.mean(sure)), 3) if sure else None,
        "median_log_width": round(float(np.median(widths)), 3),
    }


def critical_batch(rng, repeats, seeds, off):
    hits, by_batch, widths = [], [], []
    for _ in range(repeats):
        runs = []
        for batch in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
            shift = rng.normal(0, off) if off else 0.0
            runs += [Run(batch, max(1, round(200 * (1 + 1000 / batch) * np.exp(shift + rng.normal(0, 0.08))))) for _ in range(seeds)]
        fit = fit_critical_batch(runs)
        interval = fit.critical_batch
        hits.append(interval.lower <= 1000 <= interval.upper)
        by_batch.append(fit.by_batch)
        widths.append(np.log(interval.upper / interval.lower) if interval.lower > 0 else np.inf)
    shares = {"coverage": hits, "each_batch_once": by_batch}
    return {name: round(float(np.mean(v)), 3) for name, v in shares.items()} | {"median_log_width": round(float(np.median(widths)), 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=400)
    arguments = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    kinds = {"steady": {}, "heavy tails": {"heavy": True}, "drifts, 0.9": {"phi": 0.9}, "drifts, 0.99": {"phi": 0.99}}
    for n in (48, 200, 600):
        for name, kind in kinds.items():
            rows.append({"what": "noise scale", "gradients": name, "updates": n, **noise_scale(rng, arguments.repeats, n, **kind)})
            print(rows[-1], flush=True)
    for seeds in (3, 10):
        for off in (0.0, 0.15):
            rows.append(
                {"what": "critical batch", "seeds": seeds, "batch_effect": off, **critical_batch(rng, arguments.repeats // 4, seeds, off)}
            )
            print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"repeats": arguments.repeats, "seed": 0, "commit": commit, "environment": environment(), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
