"""What the named recipes reach on the test set, over seeds, with the final weights.

    python studies/reference_recipes/measure.py [--seeds 5] fashion_mnist/mlp [...]

Appends one line per run to `<task>/runs.jsonl` beside this script (so it can be stopped and continued) and writes `<task>/results.json`:
mean, standard deviation, seconds, the recipe, the environment and the commit.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import torch
from stages import STAGES  # beside this script; studies/optimizers measures these

from bigbatch import Recipe, fit
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.recipe import recipe_names
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent


def measure(name, seeds):
    recipe, path = Recipe.named(name), HERE / name / "runs.jsonl"
    stored = [line for line in readable_lines(path) if Recipe.from_saved(line["recipe"]) == recipe.replace({"seed": line["seed"]})]
    done = {line["seed"]: line for line in stored}
    for seed in range(seeds):
        if seed not in done:
            chosen = recipe.replace({"seed": seed})
            result = fit(name, chosen, quiet=True, tensorboard=False)
            done[seed] = {
                "seed": seed,
                "test": result.test_score,
                "validation": result.validation_score,
                "train_s": round(result.train_s, 2),
            }
            done[seed] |= {"updates": result.updates, "micro_batch": result.micro_batch, "recipe": chosen.to_dict()}
            with path.open("a") as file:
                file.write(json.dumps(done[seed]) + "\n")
    runs = [done[seed] for seed in range(seeds)]
    scores = [100 * run["test"] for run in runs]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    summary = {
        "task": name,
        "test_accuracy_mean": round(statistics.fmean(scores), 3),
        "test_accuracy_std": round(statistics.stdev(scores), 3),
        "test_accuracy": [round(score, 2) for score in scores],
        "seeds": list(range(seeds)),
        "train_s": [run["train_s"] for run in runs],
        "updates": runs[0]["updates"],
        "tuned": "search.py: grid on validation data; the trials are in trials.jsonl",
        "recipe": recipe.to_toml(),
        "environment": environment(),
        "commit": commit,
    }
    (HERE / name / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(name, summary["test_accuracy_mean"], "+-", summary["test_accuracy_std"], summary["train_s"], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="one: two measurements side by side on two cores")
    parser.add_argument("tasks", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for task in arguments.tasks or [name for name in recipe_names() if name not in STAGES]:
        measure(task, arguments.seeds)
