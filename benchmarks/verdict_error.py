"""How often is the verdict of `bigbatch scale` wrong, and how often does it decide?

    python benchmarks/verdict_error.py [--studies 4000]

Simulated studies of two arms, scores in points, margin 0.5, standard deviation 0.3 a run unless said otherwise. Truly equal arms, arms
that truly lose the margin (normal; skewed to the left; usually fine and 3 points lower in one run of five), arms that are 0.25 better or
3 worse. Ways to judge: `verdict` as `bigbatch scale` comes (3 to 14 seeds, runs in five that are bad excluded), the same without that rule
(3 to 10 seeds, bad_share 0.5), and Welch's test at a fixed number of seeds, as it was before. `held` of an arm that truly loses is the
error; of an equal arm it is the power. `runs` is the mean number of seeds to the verdict. Then: what pairs cost and gain against Welch's
at 14 seeds, by the correlation of runs that share a seed. Writes verdict_error.json beside this script.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
from scipy import stats

from bigbatch.study.comparison.noninferiority import noninferiority
from bigbatch.study.comparison.verdict import Design, judge_seeds
from bigbatch.train.state.record import environment

MARGIN, SPREAD = 0.5, 0.3
DESIGNS = {"scale": Design(margin=MARGIN), "without bad runs": Design(margin=MARGIN, max_seeds=10, bad_share=0.5)}


def normal(shift):
    return lambda chance, n: chance.normal(shift, SPREAD, n)


CANDIDATES = {
    "equal": (normal(0.0), False),
    "0.25 better": (normal(0.25), False),
    "loses the margin": (normal(-MARGIN), True),
    "loses the margin, skewed to the left": (lambda chance, n: -MARGIN + SPREAD * (1 - chance.exponential(size=n)), True),
    "3 points lower in one run of five": (lambda chance, n: chance.normal(0, SPREAD, n) - 3 * (chance.random(n) < 0.2), True),
    "3 points lower": (normal(-3.0), True),
}


def sequential(candidate, reference, design):
    for n in range(design.seeds, design.max_seeds + 1):
        outcome = judge_seeds(candidate[:n].tolist(), reference[:n].tolist(), design).outcome
        if outcome != "undecided":
            break
    return outcome, n


def row_of(name, way, studies):
    make, loses = CANDIDATES[name]
    chance, outcomes, runs = np.random.default_rng(0), [], 0
    for _ in range(studies):
        candidate, reference = make(chance, 14), chance.normal(0, SPREAD, 14)
        if isinstance(way, int):
            outcome, n = noninferiority(candidate[:way].tolist(), reference[:way].tolist(), margin=MARGIN).outcome, way
        else:
            outcome, n = sequential(candidate, reference, DESIGNS[way])
        outcomes.append(outcome)
        runs += n
    told = f"Welch, {way} seeds" if isinstance(way, int) else way
    shares = {outcome: round(outcomes.count(outcome) / studies, 4) for outcome in ("held", "lost", "undecided")}
    return {"candidate": name, "truly_loses": loses, "way": told, **shares, "runs": round(runs / studies, 2)}


def pairs_row(correlation, n, studies):
    """Half widths of both intervals, and how often each says "held" of an arm that truly loses the margin."""
    chance = np.random.default_rng(1)
    both = chance.multivariate_normal([-MARGIN, 0.0], SPREAD**2 * np.array([[1, correlation], [correlation, 1]]), (studies, n))
    d = both[..., 0] - both[..., 1]
    paired = stats.t.ppf(0.95, n - 1) * d.std(1, ddof=1) / n**0.5
    v = both.var(1, ddof=1)
    df = v.sum(1) ** 2 / ((v**2).sum(1) / (n - 1))
    welch = stats.t.ppf(0.95, df) * (v.sum(1) / n) ** 0.5
    wrong = [float((d.mean(1) - half > -MARGIN).mean()) for half in (paired, welch)]
    widths = {"paired_width": round(float(paired.mean()), 4), "welch_width": round(float(welch.mean()), 4)}
    return {"correlation": correlation, "seeds": n, **widths, "paired_error": round(wrong[0], 4), "welch_error": round(wrong[1], 4)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rows, pairs = [], []
    for name in CANDIDATES:
        for way in (*DESIGNS, 3, 5, 10):
            rows.append(row_of(name, way, arguments.studies))
            print(*rows[-1].values(), sep=" | ", flush=True)
    for n in (3, 5, 14):
        for correlation in (-0.3, 0.0, 0.3, 0.6):
            pairs.append(pairs_row(correlation, n, 10 * arguments.studies))
            print(*pairs[-1].values(), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"studies": arguments.studies, "margin": MARGIN, "spread": SPREAD, "seeds": {"studies": 0, "pairs": 1}, "commit": commit}
    arguments.out.write_text(json.dumps({**facts, "environment": environment(), "rows": rows, "pairs": pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
