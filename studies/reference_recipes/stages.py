"""A search in stages, for references with AdamW and Muon: the best value of one field, then of the next with it.

One seed, validation data. A number whose best value is the first or the last of its choices gets the next one
by its side, six times at most.
"""

import json
from pathlib import Path

from bigbatch import Recipe
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.tasks import load_task, metric_of

HERE = Path(__file__).parent
ADAMW = {"optimizer.lr": [0.001, 0.002, 0.004, 0.008], "optimizer.betas": [[0.9, 0.95], [0.9, 0.99], [0.9, 0.999]]}
MUON = {"optimizer.lr": [0.005, 0.01, 0.02, 0.04], "optimizer.adam_lr": [0.002, 0.004, 0.008]}
START = {"adamw": {"optimizer.lr": 0.002, "optimizer.betas": [0.9, 0.99]}, "muon": {"optimizer.lr": 0.01, "optimizer.adam_lr": 0.004}}
STAGES = dict.fromkeys(("text/gpt", "text/lstm", "fashion_mnist/vit"), ADAMW)
STAGES |= {f"{name}-muon": MUON for name in STAGES}
SEED, EXTENSIONS = 0, 6


def scores_in(path):
    """Validation scores of the trials that a file holds, by their settings; None of a diverged one."""
    lines = readable_lines(path) if path.exists() else []
    return {_key(line["settings"]): None if "diverged" in line else line["validation_score"] for line in lines}


def missing(name, scores):
    """Settings that the present stage still lacks, and the best so far; nothing is missing once all stages are over."""
    recipe = Recipe.named(name)
    metric = metric_of(load_task(recipe.task).metric)
    best = dict(START[recipe.optimizer.name])
    for field, values in STAGES[name].items():
        for _ in range(EXTENSIONS + 1):
            tried = [{**best, field: value} for value in values]
            if lacks := [settings for settings in tried if _key(settings) not in scores]:
                return lacks, best
            good = {json.dumps(s[field]): scores[_key(s)] for s in tried if scores[_key(s)] is not None}
            chosen = json.loads(min(good, key=lambda value: metric.rank(good[value])))
            if isinstance(chosen, list) or chosen not in (values[0], values[-1]):
                break
            values = [chosen / 2, *values] if chosen == values[0] else [*values, 2 * chosen]
        best[field] = chosen
    return [], best


def _key(settings):
    return json.dumps(settings, sort_keys=True)
