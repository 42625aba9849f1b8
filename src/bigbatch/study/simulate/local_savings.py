"""What a plan of local steps saves: exchanges, bytes and seconds, against all-reduce. `bigbatch plan --rule local` says it."""

import dataclasses
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.scaling import Plan
from bigbatch.scaling.local import exchanges
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link
from bigbatch.simulate.strategies import STRATEGIES, update_cost
from bigbatch.study.tables import in_time

STATES = {"sgd": 1, "sgdp": 1, "lars": 1, "muon": 1, "soap_muon": 1}
"""Values that an optimizer keeps for each weight, and that are averaged with it; 2 of those that are not here, and of what Muon leaves to
AdamW, which is little."""


class Way(NamedTuple):
    """One way to train on the same workers, over the whole run.

    Attributes:
        name: In words.
        exchanges: How often all workers exchange.
        sent_bytes: By each worker; None where the model's size is not known.
        seconds: None where the link or the step is not known.
    """

    name: str
    exchanges: int
    sent_bytes: float | None = None
    seconds: float | None = None


class Savings(NamedTuple):
    """Local steps, and all-reduce with the same updates and with those that were tuned."""

    workers: int
    local: Way
    same_updates: Way
    tuned_updates: Way

    def sentences(self) -> list[str]:
        """What is saved, a sentence for each thing that is known."""
        local, same, tuned = self.local, self.same_updates, self.tuned_updates
        said = [
            f"exchanges of {self.workers} workers: {local.exchanges:,}, where all-reduce makes {same.exchanges:,} with these updates and "
            f"{tuned.exchanges:,} at the tuned batch"
        ]
        if local.sent_bytes is not None and same.sent_bytes is not None and tuned.sent_bytes is not None:
            said.append(
                f"bytes that each sends: {_size(local.sent_bytes)}, where all-reduce sends {_size(same.sent_bytes)} and "
                f"{_size(tuned.sent_bytes)}"
            )
        if local.seconds is not None and same.seconds is not None and tuned.seconds is not None:
            said.append(
                f"time of the run, simulated: {in_time(local.seconds)}, where the fastest all-reduce takes {in_time(same.seconds)} and "
                f"{in_time(tuned.seconds)}; loading, evaluation and what links share are not in it"
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        ways = {"local": self.local, "same_updates": self.same_updates, "tuned_updates": self.tuned_updates}
        return {"workers": self.workers, **{name: way._asdict() for name, way in ways.items()}}


def savings(planned: Plan, *, model_bytes: float | None = None, link: Link | None = None, step_s: float | None = None) -> Savings:
    """What a plan saves.

    Args:
        planned: By the rule "local".
        model_bytes: Of the weights.
        link: Between workers.
        step_s: Seconds of a worker's inner update, nothing exchanged. At the tuned batch, it is taken to shrink with the samples.

    Raises:
        UserError: If the plan is by another rule, or a value is out of range.
    """
    steps, reference, recipe = planned.local, planned.reference, planned.recipe
    if steps is None:
        raise UserError(f"a plan by the rule {planned.rule!r}: exchanges after each update, and saves none; plan by the rule 'local'")
    local = Way("local steps", exchanges(steps, reference))
    same, tuned = Way("all-reduce", recipe.num_updates), Way("all-reduce at the tuned batch", reference.num_updates)
    if model_bytes is None or steps.workers == 1:
        return Savings(steps.workers, local, same, tuned)
    known = link is not None and step_s is not None
    shape: dict[str, Any] = {"model_bytes": model_bytes, "link": link or Link(0.0, 1e-9), "local_steps": steps.period}
    case = Case(workers=steps.workers, step_s=step_s or 1.0, **shape)
    smaller = Case(workers=steps.workers, step_s=case.step_s * reference.batch.global_batch / steps.inner_batch, **shape)

    states = STATES.get(recipe.optimizer.name, 2) if recipe.get("comm.momentum") == "average" else 0
    averaged = dataclasses.replace(case, model_bytes=(1 + states) * model_bytes)

    def counted(way: Way, names: list[str], case: Case, updates: int) -> Way:
        costs = [update_cost(name, case) for name in names]
        best = min(costs, key=lambda cost: cost.seconds)
        return way._replace(sent_bytes=updates * best.sent_bytes, seconds=updates * best.seconds if known else None)

    exact = [name for name, way in STRATEGIES.items() if way.exact and "server" not in name]
    return Savings(
        steps.workers,
        counted(local, ["local_sgd"], averaged, recipe.num_updates),
        counted(same, exact, case, recipe.num_updates),
        counted(tuned, exact, smaller, reference.num_updates),
    )


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.3g} {unit}"
    return f"{num_bytes:.0f} bytes"
