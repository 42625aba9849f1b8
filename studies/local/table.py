"""Print the tables of this study from its records.

    python studies/local/table.py

The reference's runs, and those of all-reduce at each multiple, are those of studies/optimizers.
"""

import importlib.util
import sys
from pathlib import Path

from bigbatch import Recipe
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.scaling.auto import auto
from bigbatch.study.grid import cell_text
from bigbatch.tasks import load_task, metric_of

HERE = Path(__file__).parent
OPTIMIZERS = HERE.parent / "optimizers"
TASKS = ("fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/resnet8", "fashion_mnist/lstm", "text/gpt")


def optimizers_table():
    """That study's script of the same name."""
    sys.path.insert(0, str(OPTIMIZERS))
    spec = importlib.util.spec_from_file_location("optimizers_table", OPTIMIZERS / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_key(path, *names):
    """The lines of a study, by some of the fields of their keys."""
    cells = {}
    for line in readable_lines(path) if path.exists() else []:
        cells.setdefault(tuple(line["key"][name] for name in names), []).append(line)
    return cells


def judged(lines, reference, metric):
    """A cell with its verdict and, where they are few, its number of seeds."""
    if not lines:
        return "-"
    text = cell_text(lines, reference, margin=metric.margin, metric=metric)
    return text if len(lines) >= 5 else f"{text} ({len(lines)} seed{'s' * (len(lines) > 1)})"


def row(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |")


def head(*cells):
    row(*cells)
    row(*["---"] * len(cells))


def judgements(task, optimizers):
    """A way a row, samples between exchanges in columns."""
    cells = by_key(HERE / f"{task.replace('/', '-')}.jsonl", "arm", "multiple", "workers")
    if not cells:
        return
    named, metric = Recipe.named(task), metric_of(load_task(Recipe.named(task).task).metric)
    whole = optimizers.cells_of(task)
    reference, rule = optimizers.reference_of(task, whole), auto(named, 16.0)[0]
    score = cell_text(reference, reference, margin=metric.margin, metric=metric)
    print(f"\n**{task}**, reference {score} {metric.unit}, {len(reference)} seeds; {metric.name}, margin {metric.margin:g}\n")
    multiples = sorted({multiple for _, multiple, _ in cells})
    head("way", "workers", *(f"x{multiple}" for multiple in multiples))
    row(f"all-reduce, {rule}", "any", *(judged(whole.get((str(multiple), rule), []), reference, metric) for multiple in multiples))
    for arm, workers in sorted({(arm, workers) for arm, _, workers in cells}, key=lambda way: (way[1], way[0] != "local", way[0])):
        row(arm, workers, *(judged(cells.get((arm, multiple, workers), []), reference, metric) for multiple in multiples))


def search(task):
    """What was tried, on validation data."""
    cells = by_key(HERE / f"{task.replace('/', '-')}-search.jsonl", "multiple", "workers", "inner", "outer_lr", "outer_momentum", "state")
    if not cells:
        return
    metric = metric_of(load_task(Recipe.named(task).task).metric)
    print(f"\n**{task}**, the search: validation data, two seeds of its own\n")
    head("between exchanges", "workers", "inner multiple", "outer rate, momentum", "inner state", f"{metric.name}, {metric.unit}")
    for (multiple, workers, inner, lr, momentum, state), lines in cells.items():
        scores = [{**line, "test_score": line["validation_score"]} for line in lines]
        text = cell_text(scores, scores, margin=metric.margin, metric=metric)
        row(f"x{multiple}", workers, inner, f"{lr:g}, {momentum:g}", state, text)


if __name__ == "__main__":
    of_optimizers = optimizers_table()
    for name in TASKS:
        judgements(name, of_optimizers)
    for name in TASKS:
        search(name)
