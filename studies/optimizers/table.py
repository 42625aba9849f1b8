"""Print the tables of this study from its records.

    python studies/optimizers/table.py

The runs of SGD's rules on fashion_mnist are those of studies/scaling_rules where that study has them. † marks runs from before
2026-11-25, when the decay of a recipe ran during its warm-up.
"""

import json
import statistics
from pathlib import Path

from run import methods_of  # beside this script

from bigbatch import Recipe
from bigbatch.core.metric import ACCURACY
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.scaling.auto import auto
from bigbatch.study.grid import cell_text
from bigbatch.tasks import load_task, metric_of

HERE = Path(__file__).parent
STUDIES = HERE.parent
METHODS = ("none", "linear", "sqrt", "legw", "lars", "lamb", "adam", "adamp", "muon")
TASKS = ("digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/lstm", "fashion_mnist/resnet8")
ADAPTIVE = ("text/gpt", "text/lstm", "fashion_mnist/vit", "text/gpt-muon", "text/lstm-muon", "fashion_mnist/vit-muon")
MULTIPLES = ("4", "8", "16", "32", "64", "256", "full")
PRECISIONS = {"fashion_mnist/cnn": (None, "float32")}


def reference_of(task, cells):
    if ("1", "none") in cells:  # more seeds, or another precision, in this study
        return cells["1", "none"]
    scores = json.loads((STUDIES / "reference_recipes" / task / "results.json").read_text())["test_accuracy"]
    return [{"test_score": score / 100, "diverged": False} for score in scores]


def is_product(line):
    """Whether a run is from before `schedule.combine`, when the decay ran during the warm-up."""
    return "combine" not in line.get("recipe", {}).get("schedule", {})


def cells_of(task, precision=None):
    """(multiple, method) to the lines of its runs; with "tuned", or the epochs in units of the reference's, as a third part.

    Where there are runs whose decay follows the warm-up, those from before are left out.
    """
    cells, older = {}, {}
    for line in readable_lines(HERE / f"{task.replace('/', '-')}.jsonl"):
        key = line["key"]
        if key.get("precision") == precision:
            more = ("tuned",) if "factor" in key else (key["epochs"],) if "epochs" in key else ()
            (older if is_product(line) else cells).setdefault((key["multiple"], key["method"], *more), []).append(line)
    rows = STUDIES / "scaling_rules" / f"{task.replace('/', '-')}.json"
    for row in json.loads(rows.read_text())["rows"] if rows.exists() and precision is None else []:
        multiple = f"{row['global_batch'] / Recipe.named(task).batch.global_batch:g}"
        lines = [{"test_score": score / 100, "diverged": False} for score in row["test_accuracy"]]
        lines += [{"test_score": None, "diverged": True}] * row["diverged"]
        older.setdefault((multiple, {"batch only": "none"}.get(row["arm"], row["arm"])), lines)
    return {**older, **cells}


def text_of(lines, reference, *, metric=ACCURACY, usual=5):
    seeds = f", {len(lines)} seed{'s' * (len(lines) > 1)}" if len(lines) != usual and not_all_died(lines) else ""
    text = cell_text(lines, reference, margin=metric.margin, metric=metric)
    text = text.replace(" undecided", "") if len(lines) == 1 else text  # a single run is not judged
    return text + seeds + (" †" if lines is not reference and is_product(lines[0]) else "")


def not_all_died(lines):
    return not all(line["diverged"] for line in lines)


def adaptive(name):
    """The table of a reference with AdamW or Muon, and below it the variants that its rules were chosen among."""
    recipe, cells = Recipe.named(name), cells_of(name)
    metric, methods = metric_of(load_task(recipe.task).metric), methods_of(name)
    if not cells.get(("1", "none")):
        return
    reference, chosen = cells["1", "none"], auto(recipe, 4.0)[0]
    scores = [metric.shown(line["test_score"]) for line in reference]
    spread = f" ± {metric.number(statistics.stdev(scores))}" if len(scores) > 1 else ""
    print(f"\n**{name}**, reference {metric.number(statistics.fmean(scores))}{spread} {metric.unit} at {recipe.batch.global_batch}\n")
    print("| multiple | updates |", " | ".join(f"{m} (auto)" if m == chosen else m for m in methods), "|")
    print("|---|---|" + "---|" * len(methods))
    for multiple in ("4", "16", "64"):
        row = [text_of(cells[multiple, m], reference, metric=metric, usual=3) if (multiple, m) in cells else "" for m in methods]
        print(f"| {multiple} | {-(-recipe.total_samples // (recipe.batch.global_batch * int(multiple)))} |", " | ".join(row), "|")
    tried = {key: lines for key, lines in cells.items() if ", " in key[1]}
    for multiple in dict.fromkeys(key[0] for key in tried):
        texts = [f"{m} {text_of(ls, reference, metric=metric, usual=3)}" for (k, m), ls in tried.items() if k == multiple]
        print(f"\nVariants at {multiple}:", "; ".join(texts))


def main():
    for task, precision in [(name, kind) for name in TASKS for kind in PRECISIONS.get(name, (None,))]:
        cells, recipe = cells_of(task, precision), Recipe.named(task)
        if not cells:
            continue
        reference = reference_of(task, cells)
        scores = [100 * line["test_score"] for line in reference]
        title = f"**{task}**" + (f" in {precision}" if precision else "")
        print(f"\n{title}, reference {statistics.fmean(scores):.2f} ± {statistics.stdev(scores):.2f} at {recipe.batch.global_batch}\n")
        print("| multiple | updates |", " | ".join(METHODS), "|")
        print("|---|---|" + "---|" * len(METHODS))
        for multiple in MULTIPLES:
            batch = recipe.num_train_samples if multiple == "full" else recipe.batch.global_batch * int(multiple)
            if any((multiple, method) in cells for method in METHODS):
                row = [text_of(cells[multiple, m], reference) if (multiple, m) in cells else "" for m in METHODS]
                print(f"| {multiple} | {-(-recipe.total_samples // batch)} |", " | ".join(row), "|")
        tuned = {cell[:2]: lines for cell, lines in cells.items() if cell[2:] == ("tuned",)}
        for multiple in dict.fromkeys(multiple for multiple, _ in tuned):
            parts = [(m, tuned[multiple, m]) for m in METHODS if (multiple, m) in tuned]
            texts = (f"{m} {text_of(lines, reference)} (rates x{lines[0]['key']['factor']:g})" for m, lines in parts)
            print(f"\nRates tuned, at {multiple} times:".replace("at full times", "whole set"), "; ".join(texts))
        longer = sorted(((cell[1], cell[2], cell[0]), lines) for cell, lines in cells.items() if cell[2:] and cell[2] != "tuned")
        if longer:
            print("\nLonger:", "; ".join(f"{m} at {k}, {e:g} times the epochs, {text_of(ls, reference)}" for (m, e, k), ls in longer))
    for name in ADAPTIVE:
        adaptive(name)


if __name__ == "__main__":
    main()
