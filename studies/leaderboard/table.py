"""Print the tables of this study from its records.

python studies/leaderboard/table.py

The runs of the Muon rule at equal epochs are those of studies/optimizers.
"""

import json
import math
import statistics
import sys
from pathlib import Path

from bigbatch import Recipe
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.study.grid import cell_text
from bigbatch.tasks import load_task, metric_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # this script may be run from anywhere
from studies.leaderboard.run import DEVELOPMENT, JUDGED, planned  # noqa: E402
from studies.local.table import head, optimizers_table, row  # noqa: E402


def cells_of(name, kind=""):
    """(method, choice, updates) to lines; choices as JSON."""
    cells = {}
    for path in sorted((HERE / "records").glob(f"*-{name.replace('/', '-')}{kind}.jsonl")):
        for line in readable_lines(path):
            key = line["key"]
            cells.setdefault((key["method"], json.dumps(key["choice"], sort_keys=True), key["updates"]), []).append(line)
    return cells


def seconds(lines):
    return statistics.median(line["train_s"] / max(line["updates"], 1) for line in lines)


def z_test(lines, record, metric):
    """Probability that a mean as much better than the record's is chance: one-sided, by the spreads of both."""
    scores = [[metric.comparable(line["test_score"]) for line in arm] for arm in (lines, record)]
    error = math.sqrt(sum(statistics.variance(arm) / len(arm) for arm in scores))
    z = (statistics.fmean(scores[0]) - statistics.fmean(scores[1])) / error
    return 0.5 * math.erfc(z / math.sqrt(2))


def searched():
    """What every method's choices did on the development tasks."""
    cells = {name: cells_of(name, "-search") for name in DEVELOPMENT}
    print(f"\nThe search: validation data of {' and '.join(DEVELOPMENT)}, seeds of its own; the chosen have two\n")
    head("method", "choice", *(f"{name.split('/')[1]}, %" for name in DEVELOPMENT), "seconds an update")
    for method, choice in dict.fromkeys((method, choice) for found in cells.values() for method, choice, _ in found):
        told, times = [], []
        for name in DEVELOPMENT:
            metric = metric_of(load_task(Recipe.named(name).task).metric)
            lines = cells[name].get((method, choice, planned(name).num_updates), [])
            scores = [{**line, "test_score": line["validation_score"]} for line in lines]
            told.append(cell_text(scores, scores, margin=metric.margin, metric=metric) if lines else "-")
            times += [f"{seconds(lines):.2f}"] if lines else []
        own = ", ".join(f"{key} {value}" for key, value in json.loads(choice).items())
        row(method, own or "as it is", *told, ", ".join(times))


def judged(name, optimizers):
    """Methods on one task, most updates first: score, verdict against the reference, chance of as much from the Muon rule."""
    cells = cells_of(name)
    if not cells:
        return
    metric = metric_of(load_task(Recipe.named(name).task).metric)
    usual = planned(name).num_updates
    whole = optimizers.cells_of(name)
    reference = optimizers.reference_of(name, whole)
    record = cells["muon", "{}", usual] = [*cells.get(("muon", "{}", usual), []), *whole.get(("64", "muon"), [])]
    print(f"\n**{name}**, reference {cell_text(reference, reference, margin=metric.margin, metric=metric)} {metric.unit}\n")
    head("updates", "method", metric.name, "seeds", f"p against muon, {usual} updates")
    for (method, choice, updates), lines in sorted(cells.items(), key=lambda cell: (-cell[0][2], cell[0][0] != "muon", cell[0][0])):
        own = ", ".join(f"{key} {value}" for key, value in json.loads(choice).items())
        tested = lines is not record and min(len(lines), len(record)) > 1 and not any(line["diverged"] for line in lines)
        p = f"{z_test(lines, record, metric):.1g}" if tested else "-"
        text = cell_text(lines, reference, margin=metric.margin, metric=metric)
        row(updates, f"{method}{f', {own}' if own else ''}", text, len(lines), p)


if __name__ == "__main__":
    of_optimizers = optimizers_table()
    for task in (*DEVELOPMENT, *JUDGED):
        judged(task, of_optimizers)
    searched()
