"""Print the tables of this study, and draw ../../docs/figures/steps-<task>.svg, from results/ and cheap/.

python studies/steps/table.py
"""

import json
from pathlib import Path

from bigbatch.core.metric import metric_of
from bigbatch.report.steps import draw_steps

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
TASKS = ("digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "simple_cnn")
ARMS = ("momentum", "sgd", "muon")


def with_interval(found, digits=0):
    """A value and its interval, in words."""
    if found is None:
        return "-"
    upper = "no bound" if found["upper"] is None else f"{found['upper']:,.{digits}f}"
    return f"{found['value']:,.{digits}f} [{found['lower']:,.{digits}f}, {upper}]"


def knee(study, name):
    """Where a regime ends, if it was seen."""
    regimes, batches = study["regimes"], [point["global_batch"] for point in study["points"] if point["best"] is not None]
    if regimes is None:
        return "-"
    found = regimes[name]
    if name == "perfect_until" and found["value"] <= batches[0]:
        return f"not from {batches[0]:,} on"
    if name == "maximal_from" and found["value"] >= batches[-1]:
        return f"beyond {batches[-1]:,}"
    return with_interval(found)


def print_task(task, studies, cheap):
    """Rows of batches, and of what was fitted."""
    first = next(iter(studies.values()))
    metric = metric_of(first["metric"])
    print(f"\n**{task}** to {metric} {metric.exact(first['target'])} on validation data, {first['trials']} trials a batch:\n")
    print("| batch |", " | ".join(f"{arm}: updates | its rate, 1 - momentum" for arm in studies), "|")
    print("|---" * (1 + 2 * len(studies)) + "|")
    points = {arm: {point["global_batch"]: point for point in study["points"]} for arm, study in studies.items()}
    for batch in [point["global_batch"] for point in first["points"]]:
        row = []
        for arm in studies:
            point = points[arm].get(batch)
            if point is None or point["best"] is None:
                row += ["-" if point is None else f"> {point['longest']:,}", "-"]
                continue
            values = point["best"]["values"]
            row.append(with_interval(point["updates"]))
            momentum = values.get("optimizer.momentum")
            row.append(f"{values['optimizer.lr']:.3g}" + ("" if momentum is None else f", {1 - momentum:.2g}"))
        print(f"| {batch:,} |", " | ".join(row), "|")
    rows = {
        "perfect scaling up to": lambda study: knee(study, "perfect_until"),
        "nothing saved beyond": lambda study: knee(study, "maximal_from"),
        "best rate, power of the batch": lambda study: with_interval(study["lr_slope"], 2),
        "best lr/(1 - momentum), power": lambda study: with_interval(study["effective_slope"], 2),
        "critical batch": lambda study: with_interval(study["critical_batch"]),
        "minutes": lambda study: f"{study['seconds'] / 60:.0f}",
    }
    for name, text in rows.items():
        print(f"| {name} |", " | ".join(f"{text(study)} | " for study in studies.values()), "|")
    if cheap:
        cells = [
            f"{with_interval(cheap[arm]['critical_batch'])}, {cheap[arm]['runs']} runs |" if arm in cheap else "- |" for arm in studies
        ]
        print("| the same by `critical` |", " | ".join(cells), "|")


def main():
    FIGURES.mkdir(exist_ok=True)
    for task in TASKS:
        name = task.replace("/", "-")
        found = {arm: HERE / "results" / f"{name}-{arm}.json" for arm in ARMS}
        studies = {arm: json.loads(path.read_text()) for arm, path in found.items() if path.exists()}
        paths = {arm: HERE / "cheap" / f"{name}-{arm}.json" for arm in ARMS}
        cheap = {arm: json.loads(path.read_text()) for arm, path in paths.items() if path.exists()}
        if studies:
            print_task(task, studies, cheap)
            metric = metric_of(next(iter(studies.values()))["metric"])
            title = f"{task}: to {metric} {metric.exact(next(iter(studies.values()))['target'])}, all settings searched"
            (FIGURES / f"steps-{name}.svg").write_text(draw_steps(studies, title))


if __name__ == "__main__":
    main()
