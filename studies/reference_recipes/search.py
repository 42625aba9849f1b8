"""How the named recipes were tuned at the small batch: grid search on validation data.

    python studies/reference_recipes/search.py fashion_mnist/mlp [...]

Appends one line per run to `<task>/trials.jsonl` beside this script and prints the five best means over the seeds. Length of the
run, batch, warm-up of 0.1 epochs (LEGW multiplies it), momentum 0.9 and kind of decay were fixed beforehand; the rate and the weight
decay are searched. References with AdamW and Muon were tuned by stages.py; fixed beforehand were their warm-up of 5 % of the run, a
cosine to zero, weight decay 0.1 and gradients clipped at norm 1.
"""

import sys
from pathlib import Path

import stages  # beside this script
import torch

from bigbatch.recipe import Recipe
from bigbatch.study.search import search
from bigbatch.tasks import load_task

HERE = Path(__file__).parent
SEEDS = {"fashion_mnist/resnet8": [0]}  # two elsewhere; a run of resnet8 takes over a minute
GRIDS = {
    "digits/mlp": {"optimizer.lr": [0.03, 0.1, 0.3], "optimizer.weight_decay": [0.0, 1e-4, 1e-3]},
    "fashion_mnist/mlp": {"optimizer.lr": [0.02, 0.05, 0.1, 0.2], "optimizer.weight_decay": [0.0, 1e-4, 5e-4, 1e-3]},
    "fashion_mnist/lstm": {"optimizer.lr": [0.1, 0.2, 0.3, 0.5, 0.8], "optimizer.weight_decay": [0.0, 1e-4, 3e-4]},
    "fashion_mnist/cnn": {"optimizer.lr": [0.02, 0.05, 0.1, 0.2], "optimizer.weight_decay": [1e-4, 5e-4, 1e-3, 2e-3]},
    "fashion_mnist/resnet8": {"optimizer.lr": [0.1, 0.2, 0.4, 0.8], "optimizer.weight_decay": [1e-4, 5e-4, 1e-3]},
}
# A second stage where one seed in five went astray at the rate that the first stage chose: the best of it again, over five seeds.
REFINED = {"fashion_mnist/cnn": {"optimizer.lr": [0.05, 0.1], "optimizer.weight_decay": [5e-4, 1e-3, 2e-3]}}


def staged(name):
    """Stage after stage; returns the settings that were best."""
    recipe, path = Recipe.named(name), HERE / name / "trials.jsonl"
    while (left := stages.missing(name, stages.scores_in(path)))[0]:
        for settings in left[0]:
            choices = {field: [value] for field, value in settings.items()}
            print(name, *search(load_task(recipe.task), recipe, choices, seeds=[stages.SEED], out=HERE / name), flush=True)
    return left[1]


torch.set_num_threads(1)  # two searches side by side on two cores
for name in sys.argv[1:] or (*GRIDS, *stages.STAGES):
    if name in stages.STAGES:
        print(name, staged(name), flush=True)
        continue
    trials = search(load_task(name), Recipe.named(name), GRIDS[name], seeds=SEEDS.get(name, [0, 1]), out=HERE / name)
    print(name, *trials[:5], sep="\n  ", flush=True)
    if name in REFINED:
        trials = search(load_task(name), Recipe.named(name), REFINED[name], seeds=range(5), out=HERE / name)
        print(f"{name}, five seeds", *trials, sep="\n  ", flush=True)
