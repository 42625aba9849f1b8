"""From runs to culprits."""

import math
from collections.abc import Sequence

import numpy as np

from bigbatch.check.arrangement import WHOLE, Arrangement
from bigbatch.check.compare import Deviation, worst
from bigbatch.check.culprits import culprit, depends_on, scale
from bigbatch.check.experiments import Experiments, Explanation, active, explanation
from bigbatch.check.report import Culprit, Row
from bigbatch.check.watch import Record


def rows_of(experiments: Experiments, arrangements: Sequence[Arrangement]) -> list[Row]:
    """Run each arrangement and compare it."""
    rows = []
    for each in arrangements:
        found = experiments.deviation(each)
        micro_batch = experiments.setup._replace(arrangement=each).micro_batch
        rows.append(Row(each, micro_batch, found, _dropped(experiments, each), found.largest <= experiments.tolerance))
    return rows


def culprits_of(experiments: Experiments, rows: Sequence[Row]) -> list[Culprit]:
    """Who is to blame for what the rows show, and for an order of samples that repeats itself."""
    if (random := _randomness(experiments)) is not None:
        return [random]
    if (start := _initial_weights(experiments, rows)) is not None:
        return [start]
    found = _of_deviations(experiments, rows)
    if all(each.name != "set_epoch" for each in found) and (repeats := _repeated_order(experiments, rows)) is not None:
        found.append(repeats)
    return found


def _of_deviations(experiments: Experiments, rows: Sequence[Row]) -> list[Culprit]:
    different = [row for row in rows if not row.same]
    if not different:
        return []
    kinds = ([r for r in different if r.arrangement.workers == 1], [r for r in different if r.arrangement.workers > 1])
    tested = [max(kind, key=lambda row: row.deviation.largest) for kind in kinds if kind]
    chosen = [row.arrangement for row in tested]
    found = explanation(experiments, chosen, active(experiments, [WHOLE, *chosen]))
    if found is None:
        return [_unexplained(experiments, tested)]
    names = set(found.removed)
    if names & {"token_weighting", "interaction"}:
        names.discard("mean_of_means")  # the same remedy
    culprits = [_named(experiments, rows, found, name) for name in sorted(names - {"scale"})]
    scaled = _scale(experiments, rows, found) if "scale" in names else None
    return [*culprits, scaled] if scaled is not None else culprits


def _named(experiments: Experiments, rows: Sequence[Row], found: Explanation, name: str) -> Culprit:
    """One culprit, with what its removal does when the other culprits are removed too."""
    others = found.removed - {name}
    left = {each: experiments.deviation(each, others, factor=factor) for each, factor in found.factors.items()}
    at = max(left, key=lambda each: left[each].largest)
    evidence = f"at {at}: {_in_words(left[at])}; {_WITHOUT[name]}, the same"
    factor = found.factors[at] if "scale" in others else 1.0
    calls = max(step.calls.get(name, 0) for step in experiments.records(at, others, factor=factor)[0].steps)
    if name in ("scheduler", "clipping") and calls > 1:
        evidence += f"; called {calls} times in an update"
    if name == "drop_last":
        dropped = ", ".join(f"{row.dropped} at {row.arrangement}" for row in rows if row.dropped)
        evidence += f"; samples left out of an epoch: {dropped}"
    repeated = sum(len(record.drawn) for record in experiments.records(at)) - experiments.setup.epochs * experiments.setup.num_samples
    if name == "mean_of_means" and repeated > 0:
        evidence += f"; {repeated} samples are drawn once more, to fill the last micro-batches"
    return culprit("last_window" if name == "mean_of_means" and left[at].steps[0] != left[at].steps[1] else name, evidence)


_WITHOUT = {
    "mean_of_means": "with whole batches only",
    "token_weighting": "with samples of one length only",
    "interaction": "with one sample many times",
    "no_all_reduce": "with gradients averaged over the workers",
    "learning_rate": "with a fixed rate",
    "scheduler": "with one call an update",
    "clipping": "without clipping",
    "drop_last": "with drop_last=False",
    "set_epoch": "with set_epoch",
    "batch_norm": "with running statistics",
    "dropout": "without dropout",
}
"""The experiment in words."""


def _scale(experiments: Experiments, rows: Sequence[Row], found: Explanation) -> Culprit | None:
    """The culprit, by the lengths of the first gradients, unclipped; None if gradients that stay with their workers explain them."""
    others = found.removed - {"scale"} | {"clipping"}
    ratios = {row.arrangement: experiments.deviation(row.arrangement, others).ratio for row in rows[1:]}
    of_micro_batches = {each.accumulation: ratio for each, ratio in ratios.items() if each.workers == 1}
    of_workers = {each.workers: ratio for each, ratio in ratios.items() if each.accumulation == 1}
    if "no_all_reduce" in found.removed and not depends_on(of_micro_batches):
        return None
    shown = "; ".join(f"{ratio:.4g} times as long at {each}" for each, ratio in ratios.items() if depends_on({1: ratio}))
    return scale(of_micro_batches, of_workers, f"{shown}; rescaled, the same")


def _randomness(experiments: Experiments) -> Culprit | None:
    first = experiments.records(WHOLE)[0]
    second = experiments.records(WHOLE, again=True)[0]
    found = worst([second], first, tolerance=experiments.tolerance)
    if found.largest <= experiments.tolerance and _apart(first, second) <= experiments.tolerance:
        return None
    return culprit("randomness", f"twice at {WHOLE}: {_in_words(found)}")


def _initial_weights(experiments: Experiments, rows: Sequence[Row]) -> Culprit | None:
    reference = experiments.records(WHOLE)[0]
    for row in rows:
        for rank, record in enumerate(experiments.records(row.arrangement)):
            if (apart := _apart(record, reference)) > experiments.tolerance:
                return culprit("initial_weights", f"at {row.arrangement}, worker {rank}: they are {_percent(apart)} apart")
    return None


def _apart(record: Record, reference: Record) -> float:
    """Relative distance of the weights before the first step."""
    if record.start.shape != reference.start.shape:
        return math.inf
    return float(np.linalg.norm(record.start - reference.start)) / max(float(np.linalg.norm(reference.start)), 1e-30)


def _unexplained(experiments: Experiments, tested: Sequence[Row]) -> Culprit:
    for row in tested:
        made, of_reference = row.deviation.steps
        if row.arrangement.accumulation > 1 and made > 1.5 * of_reference:
            return culprit("update_per_micro_batch", f"at {row.arrangement}: {_in_words(row.deviation)}")
        own = sorted(number for record in experiments.records(row.arrangement) for step in record.steps[:1] for number in step.samples)
        whole = sorted(experiments.records(WHOLE)[0].steps[0].samples)
        if len(set(own)) < len(own):
            twice = len(own) - len(set(own))
            return culprit(
                "shared_samples", f"at {row.arrangement}: {twice} of the {len(own)} samples of the first update are there already"
            )
        if own and whole and own != whole:
            return culprit(
                "sample_order", f"at {row.arrangement}: {len(own)} samples, {len(set(own) & set(whole))} of them as in the reference"
            )
    return culprit("unexplained", "; ".join(f"at {row.arrangement}: {_in_words(row.deviation)}" for row in tested))


def _repeated_order(experiments: Experiments, rows: Sequence[Row]) -> Culprit | None:
    """A DistributedSampler whose epochs are alike, and are not any more when its epoch is set."""
    for row in reversed(rows):
        record = experiments.records(row.arrangement)[0]
        if record.calls.get("set_epoch", 0) > 1 and order_repeats(record):
            told = experiments.records(row.arrangement, frozenset({"set_epoch"}))[0]
            if not order_repeats(told):
                return culprit("set_epoch", f"at {row.arrangement}: both epochs draw the same order; with set_epoch, they don't")
    return None


def order_repeats(record: Record) -> bool:
    """Whether a worker draws the same samples in the same order in its two epochs."""
    half = len(record.drawn) // 2
    return half > 1 and record.drawn[:half] == record.drawn[half:]


def _dropped(experiments: Experiments, arrangement: Arrangement) -> int | None:
    records = experiments.records(arrangement)
    if not all(record.drawn for record in records):
        return None
    epochs = experiments.setup.epochs
    drawn = sum(len(record.drawn) for record in records)
    return max(0, experiments.setup.num_samples - drawn // epochs)


def _in_words(found: Deviation) -> str:
    if found.steps[0] != found.steps[1]:
        return f"{found.steps[0]} updates where the reference makes {found.steps[1]}"
    parts = {"gradient": found.gradient, "learning rate": found.learning_rate, "weights' way": found.weights}
    name = max(("gradient", "learning rate"), key=lambda part: parts[part])
    name = name if parts[name] > 1e-9 else "weights' way"
    return f"the {name} is up to {_percent(parts[name])} off, first in update {found.first}"


def _percent(value: float) -> str:
    return "infinitely" if not math.isfinite(value) else f"{100 * value:.3g} %"
