"""Print the tables of this study from its records.

python studies/subsets/table.py
"""

import statistics
import sys
from pathlib import Path

from scipy.stats import ttest_ind

from bigbatch.core.storage.json_lines import readable_lines

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # this script may be run from anywhere
from run import ARMS  # noqa: E402
from studies.local.table import head, row  # noqa: E402

TASKS = ("fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/resnet8")


def cells_of(task):
    """(multiple, optimizer, arm) to the judged lines."""
    cells = {}
    for line in readable_lines(HERE / f"{task.replace('/', '-')}.jsonl"):
        cells.setdefault((line["multiple"], line["optimizer"], line["arm"]), []).append(line)
    return cells


def spread_of(values, digits=2):
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def figures(lines, name):
    """Those of the runs that have one."""
    return [line[name] for line in lines if not line["diverged"] and line[name] is not None]


def print_cell(cells, multiple, optimizer):
    """A row an arm, each against the plain mean and against a random half."""
    print(f"\nx{multiple}, {optimizer}:\n")
    head("rule", "test accuracy, %", "seeds", "p, two-sided, against mean", "against random", "train loss", "noise/signal", "s a run")
    scores = {arm: [100 * x for x in figures(cells.get((multiple, optimizer, arm), []), "test_score")] for arm in ARMS}
    for arm in ARMS:
        lines = cells.get((multiple, optimizer, arm), [])
        if not lines:
            continue
        died = sum(line["diverged"] for line in lines)
        seeds = f"{len(lines)}" + (f" ({died} diverged)" if died else "")
        against = [
            "-" if other == arm or min(len(scores[arm]), len(scores[other])) < 2 else f"{ttest_ind(scores[arm], scores[other]).pvalue:.2g}"
            for other in ("mean", "random")
        ]
        ratios, seconds = figures(lines, "noise_to_signal"), figures(lines, "train_s")
        loss = spread_of(figures(lines, "train_loss"), 3) if scores[arm] else "-"
        noise = f"{statistics.fmean(ratios):.2g}" if ratios else "-"
        row(
            arm,
            spread_of(scores[arm]) if scores[arm] else "-",
            seeds,
            *against,
            loss,
            noise,
            f"{statistics.median(seconds):.0f}" if seconds else "-",
        )


def main():
    for task in TASKS:
        cells = cells_of(task)
        if cells:
            print(f"\n**{task}**")
        for multiple, optimizer in sorted({key[:2] for key in cells}):
            print_cell(cells, multiple, optimizer)


if __name__ == "__main__":
    main()
