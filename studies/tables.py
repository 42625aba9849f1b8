"""Print the tables of studies from what they stored.

python studies/tables.py [STUDY ...]      all, where none is named
"""

import json
import math
import statistics
import sys
from functools import partial
from pathlib import Path

from bigbatch import Recipe
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.noise.estimate import two_digits
from bigbatch.noise.weight_distance import fit_line, fit_log
from bigbatch.study.grid import cell_text
from bigbatch.tasks import load_task, metric_of

HERE = Path(__file__).parent
score_of = partial(cell_text, margin=0.5)


def by_key(path, *names):
    """The lines of a study, by some of the fields of their keys."""
    cells = {}
    for line in readable_lines(path):
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
    for path in sorted((HERE / "critical_batch").glob("*-side-by-side.json")):
        _side_by_side(json.loads(path.read_text()), json.loads(path.with_name(path.name.replace("side-by-side", "targets")).read_text()))
    print("\nHow long branches must be:\n")
    head("task", "windows", "multiples", "samples", "% of the run a point", "critical batch at each update")
    lengths()


def _side_by_side(study, full):
    print(f"\n**{study['task']}**, batch {study['global_batch']}, points of one run; branches at {100 * study['cost']:.0f} % of it each\n")
    names = [name for name in ("plain", "preconditioned", "l1", "nuclear", "euclidean") if name in study["points"][0]["noise_scales"]]
    head("update, loss there", "branches", "largest held", *(f"noise scale, {name}" for name in names))
    for point in study["points"]:
        critical = point["critical_batch"]
        scales = [point["noise_scales"][name] for name in names]
        shown = ["none" if isinstance(each, str) else within(*each) for each in scales]
        held = f"{point['largest_held']:,.0f}" if point["largest_held"] else "-"
        row(
            f"{point['updates']:,}, {point['start_loss']:.3f}",
            within(critical["value"], critical["lower"], critical["upper"]),
            held,
            *shown,
        )
    print("\nThe full study, to targets of the validation loss at a constant rate, and the branches nearest in loss:\n")
    head("target", "critical batch", "updates by batch", "branches over it", "plain noise scale over it")
    for target, fit in full["targets"].items():
        losses = [float(loss) for loss in target.split(" to ")]
        updates = ", ".join(f"{int(batch):,}: {at:,.0f}" for batch, at in fit["updates"].items())
        point = min(study["points"], key=lambda point: abs(point["start_loss"] - sum(losses) / len(losses)))
        if "error" in fit:
            row(target, "no fit", updates, "-", "-")
            continue
        critical = fit["critical_batch"]
        measured = point["critical_batch"]["value"], point["noise_scales"]["plain"][0]
        ratios = [f"{each / critical['value']:.2f}" if each and critical["value"] else "-" for each in measured]
        row(target, within(critical["value"], critical.get("lower"), critical["upper"]), updates, *ratios)


def lengths():
    """How long branches were, and what they said; a section of critical_batch."""
    for row_of in json.loads((HERE / "critical_batch" / "lengths.json").read_text())["rows"]:
        points = [f"{p['updates']:,}: {within(p['value'], p['lower'], p['upper'])}" for p in row_of["points"]]
        multiples = ", ".join(map(str, row_of["multiples"]))
        row(row_of["task"], row_of["windows"], multiples, f"{row_of['samples']:,}", f"{100 * row_of['cost']:.0f}", "; ".join(points))


def within(value, lower, upper):
    """A value with its interval, rounded."""
    shown = ["no bound" if x is None or x == math.inf else two_digits(x) for x in (value, lower, upper)]
    return shown[0] if lower is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def batch_schedules():
    for path in sorted((HERE / "batch_schedules").glob("*.jsonl")):
        cells = by_key(path, "arm")
        chosen = path.stem.endswith("-choose")
        task = next(iter(cells.values()))[0]["key"]["task"]
        metric = metric_of(load_task(task).metric)
        told = "validation data, seeds of their own" if chosen else "the test set"
        print(f"\n**{task}**, Muon, {told}; verdicts against the first batch, margin {metric.margin:g} {metric.unit}\n")
        reference = cells["fixed",]
        most = statistics.fmean(line["updates"] for line in reference)
        head("arm", f"{metric.name}, {metric.unit}", "runs", "updates", "fewer, %")
        for (arm,), lines in sorted(cells.items(), key=lambda cell: cell[0]):
            scored = [{**line, "test_score": line["validation_score"]} for line in lines] if chosen else lines
            own = [{**line, "test_score": line["validation_score"]} for line in reference] if chosen else reference
            text = cell_text(scored, scored if lines is reference else own, margin=metric.margin, metric=metric)
            fewer = 100 * (1 - statistics.fmean(line["updates"] for line in lines) / most)
            row(arm, text, len(lines), updates_of(lines), f"{fewer:.0f}")


def decentralised():
    for path in sorted((HERE / "decentralised").glob("fashion*.jsonl")):
        cells = by_key(path, "data", "multiple", "way")
        ways = list(dict.fromkeys(way for _, _, way in cells))
        groups = list(dict.fromkeys((data, multiple) for data, multiple, _ in cells))
        seeds = {len(lines) for lines in cells.values()}
        task = readable_lines(path)[0]["key"]["task"]
        told = f"{max(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        print(f"\n**{task}**, 8 workers, {told} seeds, test accuracy in %\n")
        head("way", *(f"x{multiple}, {data}" for data, multiple in groups))
        for way in ways:
            row(way, *(plain(cells[data, multiple, way]) if (data, multiple, way) in cells else "-" for data, multiple in groups))


def autowu():
    folder = HERE / "autowu"
    for path in sorted(path for path in folder.glob("*.jsonl") if not path.stem.endswith("-search")):
        cells, searched = by_key(path, "optimizer", "arm"), by_key(path.with_name(f"{path.stem}-search.jsonl"), "optimizer", "arm")
        print(f"\n**{path.stem.replace('-', '/', 1)}**, {max(map(len, cells.values()))} seeds, 16 times the tuned batch\n")
        head(
            "optimizer, arm", "runs of search", "their seconds", "test accuracy, %", "peak rate", "switch at, % of the run", "tests cost, %"
        )
        for (optimizer, arm), lines in cells.items():
            tried = searched.get((optimizer, arm), [])
            seconds = sum(line["train_s"] or 0.0 for line in tried)
            rate = spread(line["recipe"]["optimizer"]["lr"] * (line["switch"] or {"factor": 1.0})["factor"] for line in whole(lines))
            ended = [line for line in whole(lines) if line["switch"]]
            at = spread(100 * line["switch"]["update"] / line["updates"] for line in ended)
            cost = spread(100 * line["switch"]["test_s"] / line["train_s"] for line in ended)
            row(f"{optimizer}, {arm}", len(tried) or "none", f"{seconds:.0f}" if tried else "-", plain(lines), rate, at, cost)


def whole(lines):
    return [line for line in lines if not line["diverged"]]


def spread(values):
    """From the least to the most, in three digits."""
    told = list(dict.fromkeys(f"{value:.3g}" for value in sorted(values)))
    return told[0] if len(told) == 1 else f"{told[0]} to {told[-1]}" if told else "-"


def train_longer():
    cells = by_key(HERE / "train_longer" / "runs.jsonl", "column")
    reference = cells["SB",]
    print()
    head("column", "batch", "epochs", "updates", f"test accuracy, % ({len(reference)} seeds)", "seconds a run, median")
    for (column,), lines in cells.items():
        recipe, seconds = Recipe.from_dict(lines[0]["recipe"]), [line["train_s"] for line in lines if not line["diverged"]]
        told = f"{statistics.median(seconds):.0f}" if seconds else "-"
        row(column, f"{recipe.batch.global_batch:,}", f"{recipe.total_epochs:g}", updates_of(lines), score_of(lines, reference), told)
    print("\nDistance of the weights from their start, from the end of the warm-up to the first drop of the rate: a + b log t.\n")
    head("column", "updates t", "b", "a", "R^2 of log t", "R^2 of the root of t", "distance at the last t")
    for (column,), lines in cells.items():
        fits = [walk_of(line) for line in lines if not line["diverged"]]
        if fits:
            first, last = fits[0]["updates"]
            told = [f"{statistics.fmean(fit[name] for fit in fits):.3g}" for name in ("slope", "intercept", "log", "root", "distance")]
            row(column, f"{first:,} to {last:,}", *told)


def walk_of(line):
    """How the weights of a run walked while the rate stood at its peak."""
    recipe = Recipe.from_dict(line["recipe"])
    updates_per_epoch = recipe.num_train_samples / recipe.batch.global_batch
    phase = (recipe.schedule.warmup.epochs * updates_per_epoch, recipe.schedule.decay.milestones[0] * updates_per_epoch)
    points = [(t, d) for t, d in line["weight_distance"] if phase[0] <= t <= phase[1]]
    updates, distances = zip(*points, strict=True)
    fitted, root = fit_log(updates, distances), fit_line([t**0.5 for t in updates], distances)
    told = {"updates": (updates[0], updates[-1]), "slope": fitted.slope, "intercept": fitted.intercept, "distance": distances[-1]}
    return {**told, "log": fitted.r_squared, "root": root.r_squared}


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


def sharpness():
    every = [line for path in sorted((HERE / "sharpness").glob("*.jsonl")) for line in readable_lines(path)]
    for task, ceiling in dict.fromkeys((line["key"]["task"], line["key"]["ceiling"]) for line in every):
        lines = [line for line in every if (line["key"]["task"], line["key"]["ceiling"]) == (task, ceiling)]
        arms = {}
        for line in lines:
            if "arm" in line["key"]:
                arms.setdefault(line["key"]["arm"], []).append(line)
        print(f"\n**{task}**, {len(arms['SB'])} starts, at most {ceiling} epochs; mean ± standard deviation over the starts\n")
        head(
            "arm",
            "batch",
            "epochs",
            "ceiling reached",
            "training loss",
            "training accuracy, %",
            "test accuracy, %",
            "distance from the start",
        )
        for arm, runs in arms.items():
            good = whole(runs)
            batch, ended = Recipe.from_dict(runs[0]["recipe"]).batch.global_batch, [run["stopped"] for run in good]
            ceiling = f"{ended.count(False)} of {len(ended)}" if arm != "auto" else "as LB"
            scores = [mean_of([100 * run[name] for run in good], ".2f") for name in ("train_score", "test_score")]
            epochs, loss = spread(run["epochs"] for run in good), mean_of([run["train_loss"] for run in good], ".3g")
            row(arm, f"{batch:,}", epochs, ceiling, loss, *scores, mean_of([run["distance"] for run in good], ".1f"))
        spaces = [f"{space}, {epsilon}" for epsilon in ("0.001", "0.0005") for space in ("full", "100")]
        print(f"\nSharpness in % on {lines[0]['key']['images']:,} training images: space, eps; SAM's and adaptive: rise of the loss\n")
        head("arm", *(f"{where.replace('100', 'random 100')}" for where in spaces), "SAM, rho 0.05", "adaptive, rho 0.5")
        for arm, runs in arms.items():
            good = whole(runs)
            found = [mean_of([run["sharpness"][where]["value"] for run in good], ".2f") for where in spaces]
            row(arm, *found, *(mean_of([run[name] for run in good], ".3g") for name in ("sam", "adaptive")))


def mean_of(values, form):
    """Mean and standard deviation."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):{form}}" + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def absa():
    cells = by_key(HERE / "absa" / "runs.jsonl", "arm")
    reference = cells["fixed, small",]
    print()
    head("arm", "validation, %", f"test accuracy, % ({len(reference)} seeds)", "updates", "times fewer", "eigenvalues cost, % of training")
    for (arm,), lines in cells.items():
        done = whole(lines)
        validation = plain([{**line, "test_score": line["validation_score"]} for line in lines])
        fewer = (
            statistics.fmean(line["updates"] for line in whole(reference)) / statistics.fmean(line["updates"] for line in done)
            if done
            else 0
        )
        cost = spread(100 * line["curvature_s"] / line["train_s"] for line in done if line["looks"])
        row(arm, validation, score_of(lines, reference), updates_of(lines), f"{fewer:.2f}" if done else "-", cost)
    print("\nThe batch, from each epoch on (* the eigenvalue had fallen), and how often it was looked at:\n")
    head("arm", "seed", "batches", "eigenvalues", "products with the Hessian, each")
    for (arm,), lines in cells.items():
        for line in whole(lines):
            fallen = {look["global_batch"] for look in line["looks"] if "fallen" in look["decides"]}
            told = ", ".join(f"{batch:,} from {epoch:.1f}{' *' * (batch in fallen)}" for epoch, batch in line["batches"])
            products = f"{statistics.fmean(look['products'] for look in line['looks']):.1f}" if line["looks"] else "-"
            row(arm, line["seed"], told or "-", len(line["looks"]) or "-", products)


def plain(lines):
    """Mean and spread, without a verdict: no arm here is the reference of another."""
    return score_of(lines, lines)


if __name__ == "__main__":
    for study in sys.argv[1:] or [name for name in list(globals()) if (HERE / name).is_dir()]:
        globals()[study]()
