"""What does a test of AutoWU cost, and what would it cost by scikit-learn's Gaussian process?

    python benchmarks/autowu.py [--rounds 30]

A test as `bigbatch.schedules.autowu.judge` makes it, over so many losses of a warm-up (means of 32 blocks at most, autocorrelation
averaged over); beside it the paper's test, which has white noise only, by
GaussianProcessRegressor: fitted to at most 100 losses by its own optimiser (one start), then conditioned on at most 500, five times where
there are more (once where there are not: five equal draws are one), with the joint covariance of 500 places. Medians over rounds that
alternate; one thread. A run has at most 60 tests, and mostly fewer: `run_s` is what they add up to at the end of the warm-up, where they
cost most, and `one_percent_s` the run of which that is one per cent. Writes autowu.json beside this script.
"""

import argparse
import json
import statistics
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from bigbatch.schedules.loss_curve import judge, scaled
from bigbatch.train.state.record import environment

NUM_CONDITIONED, NUM_DRAWS, NUM_FITTED, NUM_PLACES = 500, 5, 100, 500  # the paper's
LOSSES, TESTS = (25, 60, 134, 500, 2000, 20000), 60


def curve(n):
    x = np.arange(1, n + 1) / n
    return x, 2 + np.cos(4 * x) + 0.05 * np.random.default_rng(0).normal(size=n)


def by_scikit_learn(x, losses):
    y, chance = scaled(losses), np.random.default_rng(0)
    some = chance.permutation(len(y))[:NUM_FITTED]
    mean = y[some].mean()
    kernel = ConstantKernel(1.0, (1e-6, 1e3)) * RBF(0.2, "fixed") + WhiteKernel(1e-3, (1e-8, 1e2))
    fitted = GaussianProcessRegressor(kernel).fit(x[some, None], y[some] - mean)
    places, sure = np.linspace(0, 1, NUM_PLACES)[:, None], []
    for _ in range(NUM_DRAWS if len(y) > NUM_CONDITIONED else 1):
        some = chance.permutation(len(y))[:NUM_CONDITIONED]
        given = GaussianProcessRegressor(fitted.kernel_, optimizer=None).fit(x[some, None], y[some] - mean)
        f, covariance = given.predict(places, return_cov=True)
        variance = np.diag(covariance) + covariance[-1, -1] - 2 * covariance[-1]
        sure.append(((f[-1] - f) / np.sqrt(np.maximum(variance, 0) + 1e-4)).max())
    return sure


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of bounds that scikit-learn's optimiser meets
    rows = []
    judge(*curve(600))  # what is made once, is
    for n in LOSSES:
        x, y = curve(n)
        ways = {"bigbatch": lambda x=x, y=y: judge(x, y), "scikit-learn": lambda x=x, y=y: by_scikit_learn(x, y)}
        seconds = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - began)
        test_s = {name: statistics.median(values) for name, values in seconds.items()}
        run_s = TESTS * test_s["bigbatch"]
        rows.append({"losses": n, "test_s": test_s, "run_s": run_s, "one_percent_s": 100 * run_s})
        print(n, *(f"{name} {1e3 * value:.2f} ms" for name, value in test_s.items()), f"1 % of a run of {100 * run_s:.1f} s", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"rounds": arguments.rounds, "commit": commit, "environment": environment()}
    arguments.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
