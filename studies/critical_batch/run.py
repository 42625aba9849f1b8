"""How many updates does each batch need to one target, and where do larger batches stop paying?

    python studies/critical_batch/run.py fashion_mnist/mlp --target 0.88 [--batches 32 64 ...] [--seeds 2] [--noise FILE]

Fixed beforehand: the named recipe at a constant rate after 10 updates of warm-up; at every batch the rate searched by factors of two on the
first seed, from the recipe's times the root of the multiple, the range moving up to three steps where its edge is best; the metric is the
number of updates to the first validation accuracy at the target; runs end after --max-epochs and count as needing more; the test set is
not used. The target is below what the recipe reaches with its decay, so that every batch can reach it at a constant rate.
Writes `<task>/critical.json` and `critical.svg` beside this script, and a line a finished run to `<task>/runs.jsonl`, so it can be stopped
and continued.
"""

import argparse
import json
import subprocess
from pathlib import Path

import torch

from bigbatch.cli.options.values import read_noise_scale
from bigbatch.report.trade_off import write_trade_off
from bigbatch.study.critical.critical import RESULT, critical
from bigbatch.study.critical.study import rows_of

HERE = Path(__file__).parent


def study(arguments):
    folder = arguments.out / arguments.task.replace("/", "-")
    noise = None if arguments.noise is None else read_noise_scale(arguments.noise)
    result = critical(
        arguments.task,
        batches=arguments.batches,
        target=arguments.target,
        seeds=arguments.seeds,
        max_epochs=arguments.max_epochs,
        out=folder,
        noise=noise,
        say=lambda text: print(text, flush=True),
        quiet=True,
    )
    write_trade_off(result.to_dict(), folder)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    stored = {"commit": commit, **json.loads((folder / RESULT).read_text())}
    (folder / RESULT).write_text(json.dumps(stored, indent=2) + "\n")
    for row in rows_of(result):
        print(*row)
    print(*filter(None, [result.sentence(), result.noise_in_words(), *result.doubts()]), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--batches", type=int, nargs="+", default=[2**i for i in range(5, 14)])
    parser.add_argument("--target", type=float, default=0.88)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-epochs", type=float, default=60.0)
    parser.add_argument("--noise", type=Path, help="JSON of `bigbatch noise --json`")
    parser.add_argument("--out", type=Path, default=HERE, help="for trying it out")
    parser.add_argument("--threads", type=int, default=1, help="one: two studies side by side on two cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study(arguments)
