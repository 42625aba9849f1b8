"""Print the tables of the studies of the batch (adascale, adaptive_batch, increase_batch, noise_scale, critical_batch) and later ones.

python studies/tables.py [STUDY ...]
"""

import json
import statistics
import sys
from functools import partial
from pathlib import Path

from bigbatch import Recipe
from bigbatch.study.grid import cell_text
from bigbatch.train.record import read_record

HERE = Path(__file__).parent
score_of = partial(cell_text, margin=0.5)


def by_key(path, *names):
    """The lines of a study, by some of the fields of their keys."""
    cells = {}
    for line in read_record(path):
        cells.setdefault(tuple(_hashable(line["key"][name]) for name in names), []).append(line)
    return cells


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


def updates_of(lines):
    done = [line["updates"] for line in lines if not line["diverged"]]
    return f"{statistics.fmean(done):,.0f}" if done else "-"


def row(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |")


def head(*cells):
    row(*cells)
    row(*["---"] * len(cells))


def adascale():
    fixed = by_key(HERE / "adaptive_batch" / "fashion_mnist-cnn.jsonl", "arm")
    for task in ("fashion_mnist/mlp", "fashion_mnist/cnn"):
        cells, recipe = by_key(HERE / "adascale" / f"{task.replace('/', '-')}.jsonl", "arm", "multiple"), Recipe.named(task)
        reference = cells.get(("reference", 1)) or fixed["fixed, small",]
        print(f"\n**{task}**, {len(reference)} seeds, reference {score_of(reference, reference)} in {updates_of(reference)} updates\n")
        head("batch (S)", "AdaScale", "updates", "samples, times the recipe's", "linear, equal epochs", "updates", "linear, equal updates")
        for multiple in sorted({multiple for _, multiple in cells} - {1}):
            mine, epochs, same = (cells.get((arm, multiple), []) for arm in ("adascale", "equal epochs", "equal updates"))
            batch = recipe.batch.global_batch * multiple
            done = [line["updates"] * batch / recipe.total_samples for line in mine if not line["diverged"]]
            samples = f"{statistics.fmean(done):.2f}" if done else "-"
            scores = [score_of(lines, reference) if lines else "not run" for lines in (mine, epochs, same)]
            planned = f"{recipe.replace({'batch.global_batch': batch}).num_updates:,}"
            row(f"{batch:,} (x{multiple})", scores[0], updates_of(mine), samples, scores[1], planned, scores[2])


def adaptive_batch():
    for path in sorted((HERE / "adaptive_batch").glob("*.jsonl")):
        cells = by_key(path, "arm")
        reference = cells["fixed, small",]
        print(f"\n**{reference[0]['key']['task']}**, {len(reference)} seeds, the same samples seen\n")
        head("arm", "test accuracy, %", "updates", "mean batch")
        for (arm,), lines in cells.items():
            done = [line["updates"] for line in lines if not line["diverged"]]
            samples = Recipe.from_dict(lines[0]["recipe"]).total_samples
            row(
                arm,
                score_of(lines, reference),
                updates_of(lines),
                f"{samples / statistics.fmean(done):,.0f}" if done else "-",
            )


def increase_batch():
    cells = by_key(HERE / "increase_batch" / "runs.jsonl", "arm")
    reference = cells["decay",]
    print()
    head("arm", f"test accuracy, % ({len(reference)} seeds)", "updates", "seconds a run, median")
    for (arm,), lines in cells.items():
        row(
            arm,
            score_of(lines, reference),
            updates_of(lines),
            f"{statistics.median(line['train_s'] for line in lines):.0f}",
        )


def noise_scale():
    print()
    head("task, after updates", "true noise scale", "monitor [interval] over the truth", "k-diffusion", "AdaptDL")
    for line in json.loads((HERE / "noise_scale" / "results.json").read_text())["rows"]:
        true, mine = line["truth"]["noise_scale"], line["monitor"]
        others = [f"{line[name] / true:.3f}" if line[name] else "-" for name in ("k-diffusion", "adaptdl")]
        upper = mine["upper"] / true
        told = f"{mine['noise_scale'] / true:.3f} [{mine['lower'] / true:.3f}, {upper:.3f}]"
        row(f"{line['task']}, {line['updates']:,}", f"{true:,.0f}", told, *others)


def critical_batch():
    for path in sorted((HERE / "critical_batch").glob("*/critical.json")):
        study = json.loads(path.read_text())
        print(f"\n**{study['task']}** to {100 * study['target']:g} % on validation data: {study['sentence']}\n")
        head("batch", "best rate", "updates of each seed", "samples, mean")
        for point in study["points"]:
            updates = [run["updates"] for run in point["runs"]]
            samples = f"{point['global_batch'] * statistics.geometric_mean(updates):,.0f}"
            row(f"{point['global_batch']:,}", f"{point['lr']:.3g}", ", ".join(f"{u:,}" for u in updates), samples)
        print(f"\n{study['noise']['words']}" if study["noise"] else "")


def decentralised():
    for path in sorted((HERE / "decentralised").glob("fashion*.jsonl")):
        cells = by_key(path, "data", "multiple", "way")
        ways = list(dict.fromkeys(way for _, _, way in cells))
        groups = list(dict.fromkeys((data, multiple) for data, multiple, _ in cells))
        seeds = {len(lines) for lines in cells.values()}
        task = read_record(path)[0]["key"]["task"]
        told = f"{max(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        print(f"\n**{task}**, 8 workers, {told} seeds, test accuracy in %\n")
        head("way", *(f"x{multiple}, {data}" for data, multiple in groups))
        for way in ways:
            row(way, *(plain(cells[data, multiple, way]) if (data, multiple, way) in cells else "-" for data, multiple in groups))


def concurrent_adversarial():
    for path in sorted((HERE / "concurrent_adversarial").glob("*.jsonl")):
        cells = by_key(path, "arm", "setting")
        most = max(len(lines) for lines in cells.values())
        print(f"\n**rule {path.stem}**, {most} seeds, {updates_of(next(iter(cells.values())))} updates\n")
        head("arm", "setting", "test accuracy, %", "training accuracy, %", "gap, points", "seconds a run, one worker")
        order = ["alone", "augmented", "DisAdv", "ConAdv"]
        for (arm, setting), lines in sorted(cells.items(), key=lambda cell: order.index(cell[0][0]) if cell[0][0] in order else len(order)):
            done = [line for line in lines if not line["diverged"]]
            if len(lines) < most or not done:
                continue  # a setting that was tried and not chosen
            train = statistics.fmean(100 * line["train_score"] for line in done)
            gap = train - statistics.fmean(100 * line["test_score"] for line in done)
            told = {"alone": "-", "augmented": f"padding {setting}"}.get(arm, f"eps {setting}")
            row(arm, told, plain(lines), f"{train:.2f}", f"{gap:.2f}", f"{statistics.median(line['train_s'] for line in done):.0f}")
    path = HERE.parent / "benchmarks" / "concurrent_adversarial.json"
    if path.exists():
        found = json.loads(path.read_text())
        print(f"\n**seconds an update** of {found['global_batch']:,} samples, {found['cores']} cores, one thread a worker\n")
        head("arm", "one worker", "two workers")
        for arm in ("clean", "DisAdv", "ConAdv"):
            row(arm, *(f"{found['median_s'][f'{arm}, {workers}']:.2f}" for workers in (1, 2)))


def plain(lines):
    """Mean and spread, without a verdict: no arm here is the reference of another."""
    return score_of(lines, lines)


if __name__ == "__main__":
    known = ["decentralised", "adascale", "adaptive_batch", "increase_batch", "noise_scale", "critical_batch", "concurrent_adversarial"]
    for study in sys.argv[1:] or known:
        globals()[study]()
