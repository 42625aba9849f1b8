"""The critical batch at points of one run: branches from its checkpoints at several batches, compared by held-out loss at equal samples.

Protocol: from each checkpoint a branch for each multiple of the batch and each window of data; all branches of a window see the same
          samples in the same order. By default the rate is the run's at the checkpoint times the root of the multiple, and falls to zero
          in a straight line over the branch. So losses are compared without the noise that a rate leaves, under which a run that stands at
          one rate hides what it gains, and a rate that is too low or too high costs less. One more branch, of half the samples, says how
          the gain grows with them.
Analysis: `bigbatch.noise.branches`.
Cost:     known beforehand. Where the validation set is larger than a branch, losses are over as many of its samples, evenly spaced, 500 at
          least: the same for all branches, so that they are compared in pairs.
Differs:  Merrill et al. 2025 keep the rate and smooth the loss (`decays=False` keeps it).
"""

import json
import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigbatch.batching.batch_steps import POWERS, rate_factor
from bigbatch.core.checks import CheckpointError, Interrupted, UserError, check_fraction, check_positive, unknown
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.json_lines import append_line, finite, stored_lines
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.version import __version__
from bigbatch.noise.branches import LEAST_POWER, Branches, NothingToCompare, expected_factor, largest_held, local_critical_batch
from bigbatch.runner.jobs import Whole
from bigbatch.study.branches.base_runs import TaskRun
from bigbatch.study.branches.study import BranchPoint, BranchStudy
from bigbatch.study.result_files import BRANCHES
from bigbatch.train.branch import Branch, BranchResult
from bigbatch.train.state.record import environment

RESULT = BRANCHES
COST = 0.2
"""Of the run's samples: what the branches of one checkpoint take, unless their samples are given."""
LEAST_HELD_OUT, EVALUATION = 500, 1 / 3
"""Samples that losses are over at least; cost of evaluating a sample over that of training on it."""
ENOUGH_UPDATES, FEW_UPDATES = 10, 4
"""Of the largest batch in a branch: what multiples are chosen for, and what is warned of: momentum and the noise of a jump take some."""
ENOUGH_OWN_UPDATES = 100
"""Of the run's own batch in a branch: see lengths in studies/README.md."""
FLAT = "the critical batch may come out too high, and its interval too narrow; take fewer samples"
USUAL = (1, 4, 16), (1, 3, 9), (1, 2, 6), (1, 2, 4)
"""Multiples, unless they are given."""
POINTS = (0.1, 0.25, 0.5)
"""Of the run: where branches begin unless that is given."""


class BaseRun(Protocol):
    """A run with checkpoints to branch from.

    Attributes:
        name: Of what is trained.
        identity: Tells it from other runs.
        global_batch: Of the run, samples.
        total_samples: Of the run.
        tolerance: Of the loss, unless another is asked for.
        num_held_out: Samples of the validation set; 0 where that is not known.
        notes: Doubts.
    """

    name: str
    identity: str
    global_batch: int
    total_samples: int
    tolerance: float
    num_held_out: int
    notes: tuple[str, ...]

    def checkpoints(self) -> dict[int, int]:
        """Updates at which there is one, with the samples seen by then."""
        ...

    def start_loss(self, updates: int, held_out: int) -> float:
        """Held-out loss of the checkpoint at so many updates, over so many samples; 0 for all."""
        ...

    def branch(self, updates: int, branch: Branch) -> BranchResult:
        """Run a branch from it."""
        ...


def branches(
    run: "BaseRun | str | Path",
    *,
    at: Sequence[int] | None = None,
    multiples: Sequence[int] | None = None,
    samples: int | None = None,
    windows: int = 3,
    lr: str = "sqrt",
    lr_factors: Sequence[float] = (1.0,),
    tolerance: float | None = None,
    decays: bool = True,
    confidence: float = 0.95,
    out: str | Path,
    say: Callable[[str], None] | None = None,
) -> BranchStudy:
    """Measure the critical batch at points of a run.

    Args:
        run: The folder of a run of `fit` or `bigbatch train`; or another with checkpoints, as in `bigbatch.study.branches.base_runs`.
        at: Updates of its checkpoints; three at about a tenth, a quarter and half of the run if left out.
        multiples: Of its batch; 1 is always among them. Left out: 1, 4 and 16; or 1, 3 and 9; 1, 2 and 6; 1, 2 and 4: the first of
            which the largest makes ten updates in a branch.
        samples: Of each branch; what makes the branches of one checkpoint a fifth of the run if left out.
        windows: Of data, each another part of it in another order; two at least for an interval.
        lr: How the rate goes with the multiple: "sqrt", "linear" or "none".
        lr_factors: Further factors of the rate, of which each batch takes the best; in each window as the other windows say.
        tolerance: Of the loss, for the largest batch that is not worse; if left out, 0.01 of a task, the metric's margin of a script.
        decays: Whether the rate falls to zero over a branch; False keeps the run's schedule.
        confidence: Of intervals and tests.
        out: Folder of `branches.jsonl`, a line a branch, and `branches.json`. Branches found there are not repeated.
        say: Called with lines of text: the cost, what the first branches let expect, each branch.

    Raises:
        UserError: On bad arguments, where a checkpoint is missing or another recipe's, where no branch gains anything, or all diverge.
        Interrupted: After Ctrl-C; the same call goes on with the next branch.
    """
    base: BaseRun = TaskRun(run) if isinstance(run, str | Path) else run
    tolerance = base.tolerance if tolerance is None else tolerance
    sizes = sorted({1, *(multiples or USUAL[0])})
    _check(sizes, windows, lr, lr_factors, tolerance, samples, confidence)
    passes, number = windows * (len(sizes) * len(lr_factors) + 0.5), windows * (len(sizes) * len(lr_factors) + 1)
    length = samples or _length(base, passes, number)
    if multiples is None:
        sizes = next((list(usual) for usual in USUAL if length >= ENOUGH_UPDATES * usual[-1] * base.global_batch), list(USUAL[-1]))
    largest = sizes[-1] * base.global_batch
    if length < 2 * largest:
        needed = f"{FEW_UPDATES * largest:,}" if FEW_UPDATES * largest < base.total_samples else "fewer multiples, or more"
        raise UserError(f"{length:,} samples are {length / largest:.1f} updates of the largest batch, {largest:,}: take {needed} samples")
    chosen = _points(base, at, length)
    tell = say or (lambda _: None)
    held_out = _held_out(base, length)
    cost = (passes * length + EVALUATION * number * held_out) / base.total_samples
    each = " at each checkpoint" if len(chosen) > 1 else ""
    over = f", each evaluated on {held_out:,}," if held_out else ""
    tell(f"{number} branches of {length:,} samples{over}{each}: {100 * cost:.0f} % of the run's cost")
    notes = list(base.notes)
    if length < FEW_UPDATES * largest:
        notes.append(f"the largest batch, {largest:,}, makes {length / largest:.1f} updates: too few to say much of it")
    if length < ENOUGH_OWN_UPDATES * base.global_batch:
        notes.append(
            f"the run's own batch makes {length / base.global_batch:,.0f} updates in a branch: in our studies branches of fewer than "
            f"{ENOUGH_OWN_UPDATES} put the critical batch too low, by up to a factor of 5; take more samples, in fewer windows if need be"
        )
    if not decays and lr != "linear":
        notes.append("the rate is kept: a larger batch with a lower noise of the rate ends lower by that alone")
    whole = Whole(expected=number * len(chosen))
    with owned(Path(out)) as folder:
        found, lines = [], []
        for updates in chosen:
            bench = _Bench(base, updates, folder / "branches.jsonl", tell, whole, held_out=held_out, decays=decays)
            try:
                found.append(_measure(bench, sizes, length, windows, lr, list(lr_factors), tolerance, confidence))
            except NothingToCompare as error:
                if len(chosen) == 1 or (updates == chosen[-1] and not found):
                    raise
                notes.append(f"at update {updates:,}: {error}")
            else:
                if found[-1].estimate.power < 1.05 * LEAST_POWER:
                    notes.append(f"at update {updates:,} branches gain hardly more from twice the samples: {FLAT}")
            lines += bench.lines
        if windows > 1 and all(len(set(each.losses)) == 1 for point in found for each in point.branches):
            notes.append("the windows of data gave equal losses: what is run does not follow the seed, and the intervals say nothing")
        told = tuple(found), tuple(notes), _seconds(lines)
        study = BranchStudy(base.name, base.global_batch, length, tolerance, cost, confidence, *told)
        facts = {"multiples": sizes, "windows": windows, "lr": lr, "lr_factors": list(lr_factors), "decays": decays}
        facts |= {"version": __version__, "environment": environment(choose_device())}
        write_atomically(folder / RESULT, f"{json.dumps({**study.to_dict(), **facts}, indent=2)}\n".encode())
        return study


def _held_out(base: BaseRun, length: int) -> int:
    """Samples of the validation set that losses are over."""
    return min(base.num_held_out, max(length, LEAST_HELD_OUT))


def _length(base: BaseRun, passes: float, number: int) -> int:
    """Samples of a branch that make all of a checkpoint cost `COST` of the run."""

    def cost(length: int) -> float:
        return passes * length + EVALUATION * number * _held_out(base, length)

    return max(1, bisect_right(range(1, base.total_samples + 1), COST * base.total_samples, key=cost))


def _check(
    sizes: Sequence[int], windows: int, lr: str, lr_factors: Sequence[float], tolerance: float, samples: int | None, confidence: float
) -> None:
    if len(sizes) < 2:
        raise UserError(f"multiples = {list(sizes)}: one larger than 1 at least; 1, 4, 16 is usual")
    for name, values in (("multiples", sizes), ("windows", [windows]), ("lr_factors", lr_factors), ("tolerance", [tolerance])):
        for value in values:
            check_positive(name, value)
    if not lr_factors:
        raise UserError("lr_factors = []: must hold one at least; (1.0,) is usual")
    if samples is not None:
        check_positive("samples", samples)
    if lr not in POWERS:
        raise UserError(unknown("lr", lr, POWERS))
    check_fraction("confidence", confidence)


def _points(base: BaseRun, at: Sequence[int] | None, length: int) -> list[int]:
    """The checkpoints to branch from.

    Raises:
        UserError: If one is missing, or too near to the run's end.
    """
    there = base.checkpoints()
    room = {updates: samples for updates, samples in there.items() if 0 < samples <= base.total_samples - length}
    if not there:
        raise CheckpointError(f"{base.name}: the run kept no checkpoints to branch from; train it with --keep-checkpoints")
    if at is None:
        if not room:
            raise CheckpointError(
                f"{base.name}: none of its {len(there)} checkpoints has {length:,} samples of the run after it; take fewer"
            )
        nearest = {min(room, key=lambda updates: abs(room[updates] / base.total_samples - share)) for share in POINTS}
        return sorted(nearest)
    for updates in at:
        if updates not in there:
            known = ", ".join(f"{each:,}" for each in sorted(there)[:12]) + (", ..." if len(there) > 12 else "")
            raise CheckpointError(f"at = {updates:,}: no checkpoint of that update; there are {known}")
        if updates not in room:
            left = base.total_samples - there[updates]
            raise UserError(
                f"at = {updates:,}: the run has {left:,} samples left there, a branch takes {length:,}; take fewer, or branch earlier"
            )
    return sorted(set(at))


def _measure(
    bench: "_Bench",
    sizes: Sequence[int],
    length: int,
    windows: int,
    lr: str,
    factors: Sequence[float],
    tolerance: float,
    confidence: float,
) -> BranchPoint:
    """All branches from one checkpoint; the smallest batch first, which says what the others can be expected to tell."""
    batch, start = bench.base.global_batch, bench.start_loss()

    def losses(multiple: int, samples: int, factor: float) -> list[float]:
        rate = factor * rate_factor(multiple, 1, lr)
        return [bench.loss(Branch(samples, multiple, rate, order, bench.held_out, bench.decays)) for order in range(1, windows + 1)]

    by_factor = {1: {factor: losses(1, length, factor) for factor in factors}}
    own, best = _best(by_factor[1])
    gains = [start - loss for loss in own]
    if windows > 1 and all(map(math.isfinite, gains)):
        gain, spread = statistics.fmean(gains), statistics.stdev(gains)
        expected = expected_factor(gain, spread, [k * batch for k in sizes], windows=windows, confidence=confidence)
        reach = f"a factor of about {expected:.2g} to each side" if math.isfinite(expected) else "no bound: take more samples or windows"
        bench.tell(
            f"the run's own batch gains {gain:.4f}, give or take {spread:.4f}; the interval of a critical batch amid the multiples: {reach}"
        )
    points, rates = [Branches(batch, length / 2, tuple(losses(1, length // 2, best)))], [best]
    for multiple in sizes:
        tried = by_factor.get(multiple) or {factor: losses(multiple, length, factor) for factor in factors}
        own, best = _best(tried)
        points.append(Branches(multiple * batch, length, tuple(own)))
        rates.append(best * rate_factor(multiple, 1, lr))
    estimate = local_critical_batch(start, points, confidence=confidence)
    held = largest_held(points[1:], tolerance=tolerance, confidence=confidence)
    updates = bench.updates
    return BranchPoint(updates, bench.base.checkpoints()[updates], start, tuple(points), tuple(rates), estimate, held)


def _best(by_factor: dict[float, list[float]]) -> tuple[list[float], float]:
    """Each window's loss at the factor that is best in the mean of the other windows, and the factor that is best in the mean of all."""

    def rank(losses: Sequence[float]) -> float:
        return statistics.fmean(losses) if losses and all(map(math.isfinite, losses)) else math.inf

    def chosen(but: int | None) -> float:
        return min(by_factor, key=lambda f: rank([loss for number, loss in enumerate(by_factor[f]) if number != but]))

    windows = len(next(iter(by_factor.values())))
    if windows == 1:
        best = chosen(None)
        return by_factor[best], best
    return [by_factor[chosen(number)][number] for number in range(windows)], chosen(None)


class _Bench:
    """Runs branches from one checkpoint, or finds that they have been run."""

    def __init__(
        self, base: BaseRun, updates: int, path: Path, tell: Callable[[str], None], whole: Whole, *, held_out: int, decays: bool
    ) -> None:
        self._whole = whole
        self.base, self.updates, self.tell, self.held_out, self.decays = base, updates, tell, held_out, decays
        self.lines: list[dict[str, Any]] = []
        self._path = path
        self._done = {self._identity(line): line for line in stored_lines(path, self._identity)}

    def start_loss(self) -> float:
        """Of the checkpoint."""
        loss = self.base.start_loss(self.updates, self.held_out)
        if not math.isfinite(loss):
            raise UserError(
                f"update {self.updates:,}: the held-out loss of the checkpoint is {loss}; branch from one before the run diverged"
            )
        return loss

    def loss(self, branch: Branch) -> float:
        """At the branch's end; NaN of one that diverged."""
        line = {"run": self.base.identity, "at": self.updates, **vars(branch)}
        if (key := self._identity(line)) not in self._done:
            rate = f", rate x {branch.rate_factor:.3g}" if branch.rate_factor != 1 else ""
            title = f"update {self.updates:,}, batch {branch.multiple * self.base.global_batch:,}{rate}, window {branch.order}"
            began = time.monotonic()
            try:
                result = self.base.branch(self.updates, branch)
            except Interrupted:
                raise Interrupted(f"stopped at {title}; finished branches are kept, and the same command goes on with this one") from None
            told = "diverged" if result.diverged else f"{result.loss:.4f}"
            self.tell(f"{title}, {branch.samples:,} samples: {told}")
            measured = {"loss": None if result.diverged else result.loss, "updates": result.updates, "train_s": result.train_s}
            self._done[key] = line | finite(measured)
            append_line(self._path, self._done[key])
            self._whole.add(time.monotonic() - began)
            if text := self._whole.in_words("branches"):
                self.tell(text)
        else:
            self._whole.found()
        self.lines.append(self._done[key])
        loss = self._done[key]["loss"]
        return math.nan if loss is None else float(loss)

    @staticmethod
    def _identity(line: Any) -> str:
        names = ("run", "at", *Branch.__dataclass_fields__)
        if line.get("loss", 0.0) is not None:
            float(line.get("loss", 0.0))
        return json.dumps([line[name] for name in names])


def _seconds(lines: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Least-squares times of an update and of a sample, neither below zero."""
    known = [(line["updates"], line["samples"], line["train_s"]) for line in lines if line["train_s"] is not None and line["updates"]]
    if len({updates for updates, *_ in known}) < 2:
        return None
    updates, samples, seconds = np.array(known, dtype=float).T
    update, sample = np.linalg.lstsq(np.stack([updates, samples], axis=1), seconds, rcond=None)[0].tolist()
    if update < 0:
        return 0.0, float(seconds @ samples / (samples @ samples))
    return (float(update), float(sample)) if sample > 0 else (float(seconds @ updates / (updates @ updates)), 0.0)
