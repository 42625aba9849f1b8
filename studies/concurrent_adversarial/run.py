"""Do adversarial examples, made from the last update's weights, help a large batch? fashion_mnist/resnet8 at 64 times its tuned batch.

    python studies/concurrent_adversarial/run.py --rule lars &
    python studies/concurrent_adversarial/run.py --rule auto
    python studies/tables.py concurrent_adversarial

Fixed beforehand: the recipe as the rule plans it for 8,192 samples (81 updates), equal epochs, three seeds, final weights, test set once a
run; accuracy on all training images, as they are, with the same weights. Arms:

    alone        the planned recipe
    augmented    random crops and mirroring; padding of 1, 2 or 4 pixels
    DisAdv       adversarial examples from this update's weights; ConAdv's eps
    ConAdv       from the last update's; eps of 0.01, 0.03 or 0.1 of the range of grey levels
    with --more: ConAdv that falls off from half the run on, to nothing at 0.9 of it; ConAdv over augmented images

Clean and adversarial loss go together as the recipe's default has it: summed with LARS, as in the paper, else the mean. Padding and eps are
those with the best validation accuracy at seed 0, three runs for either; nothing else is tuned. Appends a line a finished run to
<rule>.jsonl beside this script; stopped at any moment, it goes on where it was.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from bigbatch import Diverged, Recipe, fit, plan
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.tasks import load_task
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.setup.build import build_model
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.record import environment

HERE, TASK, MULTIPLE = Path(__file__).parent, "fashion_mnist/resnet8", 64
PADDINGS, EPS = (1, 2, 4), (0.01, 0.03, 0.1)
CPU = torch.device("cpu")


def changes_of(arm, setting):
    """What an arm adds to the planned recipe; its setting is a padding, an eps, or both."""
    match arm:
        case "alone":
            return {}
        case "augmented":
            return {"augmentation": {"padding": setting, "flip": True}}
        case "DisAdv":
            return {"adversarial": {"eps": setting, "tau": 0}}
        case "ConAdv":
            return {"adversarial": {"eps": setting, "tau": 1}}
        case "ConAdv, falling off":
            return {"adversarial": {"eps": setting, "tau": 1, "full_until": 0.5, "off_at": 0.9}}
        case "ConAdv, augmented":
            padding, eps = setting
            return changes_of("augmented", padding) | changes_of("ConAdv", eps)


def measured(task, recipe):
    """One run: scores of its final weights on all three sets."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = {"evaluate_every": recipe.total_epochs, "save_every_s": 1e9, "tensorboard": False}
            result = fit(task, recipe, out=Path(folder, "run"), quiet=True, **settings)
        except Diverged as error:
            return {"diverged": True, "updates": error.update, "test_score": None, "validation_score": None}
        model = build_model(task, recipe, CPU)
        model.load_state_dict(read_checkpoint(Path(folder, "run", "last.pt"), CPU)["model"])
    train = evaluate(model, task, task.splits().train, recipe=recipe)
    scores = {"test_score": result.test_score, "validation_score": result.validation_score, "train_score": train.score}
    return {"diverged": False, "updates": result.updates, **scores, "train_s": round(result.train_s, 1)}


class Study:
    """The runs of one rule."""

    def __init__(self, rule, path, changes):
        self.rule, self.path, self.task = rule, path, load_task(TASK)
        recipe = Recipe.named(TASK)
        planned = plan(recipe, global_batch=MULTIPLE * recipe.batch.global_batch, rule=rule).recipe
        self.recipe = planned.replace({"batch.micro_batch": 128, **changes})
        self.done = {self.identity(line): line for line in readable_lines(path)}
        self.commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()

    @staticmethod
    def identity(line):
        """What a line stands for."""
        return json.dumps([line["key"], line["seed"], Recipe.from_saved(line["recipe"]).to_dict()], sort_keys=True)

    def run(self, arm, setting, seed):
        """The line of a run, which is made if there is none."""
        recipe = self.recipe.replace({"seed": seed, **changes_of(arm, setting)})
        line = {"key": {"rule": self.rule, "arm": arm, "setting": setting}, "seed": seed, "recipe": recipe.to_dict()}
        identity = self.identity(line)
        if identity not in self.done:
            facts = {"commit": self.commit, "environment": environment()}
            self.done[identity] = {**line, **measured(self.task, recipe), **facts}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[identity]) + "\n")
            told = ("validation_score", "test_score", "train_score", "train_s")
            print(self.rule, arm, setting, seed, {name: self.done[identity].get(name) for name in told}, flush=True)
        return self.done[identity]

    def best(self, arm, settings):
        """The setting with the best validation accuracy at seed 0."""
        return max(settings, key=lambda setting: self.run(arm, setting, 0)["validation_score"] or 0.0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=["lars", "auto"], required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--epochs", type=float, help="fewer than the recipe's, to try the script out")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"budget.epochs": arguments.epochs} if arguments.epochs is not None else {}
    study = Study(arguments.rule, arguments.out / f"{arguments.rule}.jsonl", changes)
    padding, eps = study.best("augmented", PADDINGS), study.best("ConAdv", EPS)
    arms = {"alone": None, "augmented": padding, "DisAdv": eps, "ConAdv": eps}
    if arguments.more:
        arms |= {"ConAdv, falling off": eps, "ConAdv, augmented": [padding, eps]}
    for seed in range(arguments.seeds):
        for arm, setting in arms.items():
            study.run(arm, setting, seed)


if __name__ == "__main__":
    main()
