"""How often does AutoWU take noise for a minimum, and does it still find a true one?

    python benchmarks/autowu_false_minima.py [--runs 100]

Simulated runs of 50, 200 and 1,000 updates: the mean loss is a known curve of the rate (flat; falling up to the peak; falling and then
rising, lowest at `best`; rising from the start), plus stationary noise with a known standard deviation: AR(1), or half its variance
AR(1) and half white. Two ways of judging the same losses: this library's, which averages over the noise's correlation and share, and the
paper's white noise with its one best share of the variance, on at most 500 losses ("white"). Seeds 0 to runs - 1. Told for each:
`turned`, the share of runs whose warm-up ended early because "the loss has turned" (false, but for the curve with a minimum);
`below_1e-3`, the share of runs that go on at less than a thousandth of the peak; `near`, the share that goes on within a factor of 4 of
the best rate, where there is one; medians of the rate and of the place of the switch. Writes autowu_false_minima.json beside this script.
"""

import argparse
import json
import math
import statistics
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np

from bigbatch.core.clock import Clock
from bigbatch.schedules import AutoWU, autowu, gaussian_process
from bigbatch.train.state.record import environment

UPDATES = (50, 200, 1000)
NOISES = [
    ("ar1", 0.0, 0.02),
    ("ar1", 0.0, 0.3),
    ("ar1", 0.5, 0.1),
    ("ar1", 0.9, 0.1),
    ("ar1", 0.9, 0.3),
    ("ar1", 0.98, 0.1),
    ("half", 0.95, 0.1),
]
CURVES = {
    "flat": lambda z: 2.3 + 0 * z,
    "falling": lambda z: 2 - 0.1 * z,
    "minimum": lambda z: 2.3 - 1.8 / (1 + 10 ** (-3 * (z + 2.52))) + 0.5 * max(0.0, z + 1.52) ** 2,
    "rising": lambda z: 2.3 + 0.3 * (z + 5),
}
"""Mean loss by the decimal logarithm of the rate over the peak, from -5 to 0; the minimum is flat around 10^-1.5."""
BEST = 10 ** (min(range(-500, 1), key=lambda z: CURVES["minimum"](z / 100)) / 100)


def noise_of(kind, correlation, sd, num, seed):
    """Stationary, of `num` updates."""
    chance = np.random.default_rng(seed)
    shocks, white, wave = chance.normal(size=num), chance.normal(size=num), np.zeros(num)
    wave[0] = shocks[0]
    for t in range(1, num):
        wave[t] = correlation * wave[t - 1] + math.sqrt(1 - correlation**2) * shocks[t]
    return sd * (wave if kind == "ar1" else math.sqrt(0.5) * (wave + white))


def switch_of(curve, noise):
    """Of a run of so many updates of 1 sample."""
    schedule, clock = AutoWU(total_samples=len(noise)), Clock()
    while schedule.switch is None:
        loss = CURVES[curve](math.log10(schedule(clock))) + noise[clock.updates]
        schedule.observe(clock, loss)
        clock = clock.after(1)
    return schedule.switch


def fit_white(x, y, times):
    """The paper's: white noise, and the one share of it that is likeliest."""
    with mock.patch.object(gaussian_process, "CORRELATIONS", (0.0,)):
        (found,) = gaussian_process.fit(x, y, times)
    best = [int(np.argmax(found.probability))]
    return [
        found._replace(
            probability=np.ones(1),
            **{name: getattr(found, name)[..., best] for name in ("weights", "variances", "mean", "scale", "noise")},
        )
    ]


def row_of(way, updates, curve, noise, runs):
    fit, num_blocks = (fit_white, 500) if way == "white" else (gaussian_process.fit, autowu.NUM_BLOCKS)
    with mock.patch.multiple(autowu, fit=fit, NUM_BLOCKS=num_blocks):
        switches = [switch_of(curve, noise_of(*noise, updates, seed)) for seed in range(runs)]
    factors = [switch.factor for switch in switches]
    near = sum(BEST / 4 < factor < 4 * BEST for factor in factors) / runs
    return {
        "way": way,
        "updates": updates,
        "curve": curve,
        "noise": noise[0],
        "correlation": noise[1],
        "sd": noise[2],
        "turned": sum(switch.reason == "the loss has turned" for switch in switches) / runs,
        "below_1e-3": sum(factor < 1e-3 for factor in factors) / runs,
        "near": near if curve == "minimum" else None,
        "median_factor": float(f"{statistics.median(factors):.3g}"),
        "median_at": round(statistics.median(switch.samples / updates for switch in switches), 3),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rows = []
    for updates in UPDATES:
        for curve in CURVES:
            for noise in NOISES:
                for way in ("white", "bigbatch"):
                    rows.append(row_of(way, updates, curve, noise, arguments.runs))
                    print(*rows[-1].values(), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"runs": arguments.runs, "seeds": f"0 to {arguments.runs - 1}", "best": BEST, "commit": commit, "environment": environment()}
    arguments.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
