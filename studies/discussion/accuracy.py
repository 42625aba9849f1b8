"""Does the batch change the final accuracy? Every task at its tuned batch and at multiples of it by the rule `auto`, equal epochs.

    python studies/discussion/accuracy.py

Prints a table from the records of studies/optimizers; nothing is run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "optimizers"))

from table import ADAPTIVE, TASKS, cells_of, reference_of

from bigbatch import Recipe
from bigbatch.scaling.auto import auto
from bigbatch.study.grid import cell_text
from bigbatch.tasks import load_task, metric_of

MULTIPLES = ("4", "16", "64")


def main():
    print("| task | tuned batch | its score |", *(f"x{multiple} |" for multiple in MULTIPLES))
    print("|---" * (3 + len(MULTIPLES)) + "|")
    for task in (*TASKS, *(task for task in ADAPTIVE if not task.endswith("-muon"))):
        named, cells = Recipe.named(task), cells_of(task)
        metric = metric_of(load_task(named.task or task).metric)
        reference = reference_of(task, cells)
        row = [f"{named.batch.global_batch}", cell_text(reference, reference, margin=metric.margin, metric=metric)]
        for multiple in MULTIPLES:
            rule = auto(named, float(multiple))[0]
            lines = cells.get((multiple, "auto")) or cells.get((multiple, rule))
            row.append(f"{cell_text(lines, reference, margin=metric.margin, metric=metric)} ({rule})" if lines else "-")
        print(f"| {task} |", " | ".join(row), "|")


if __name__ == "__main__":
    main()
