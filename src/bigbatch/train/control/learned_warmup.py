"""AutoWU in the trainer: it sees the mean loss over all workers, the first decides, and all do as it says.

Losses stay on the device until a test is due. With `return_to_minimum` each update of the warm-up is looked at instead: a loss or a
weight that is not finite then ends the warm-up, and the run goes on from the weights of the minimum; without, it ends the run.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigbatch.comm.protocol import Comm
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.core.tensors.sharding import local
from bigbatch.schedules.autowu import AutoWU, Judgement
from bigbatch.schedules.kept import Kept
from bigbatch.train.state.record import Record

States = tuple[dict[str, Any], dict[str, Any]]


class LearnedWarmup:
    """Feeds an AutoWU and does what it decides.

    Args:
        autowu: Gives the rates.
        comm: Of the workers; knows the model.
        optimizer: Of the run.
        record: Gets the switch.
        return_to_minimum: Whether weights and optimizer state go back too.

    Attributes:
        message: What the last update brought, in words; empty for nothing.
    """

    def __init__(self, autowu: AutoWU, *, comm: Comm, optimizer: Optimizer, record: Record, return_to_minimum: bool) -> None:
        self.autowu, self.message = autowu, ""
        self._comm, self._ranks, self._optimizer, self._record = comm, comm.ranks, optimizer, record
        self._kept = Kept(self._states, self._load) if return_to_minimum else None
        self._pending: list[tuple[Clock, int, Tensor]] = []
        self._test_s = 0.0

    def after_update(self, clock: Clock, num_samples: int, sum_loss: Tensor) -> None:
        """`clock` stands after the update; `sum_loss` is of this worker's samples, on the device."""
        self.message = ""
        if self.autowu.switch is not None:
            return
        before = Clock(clock.samples - num_samples, clock.updates - 1)
        if self._kept is not None:
            sum_loss = sum_loss.where(self._weights_are_finite(), torch.nan)
        self._pending.append((before, num_samples, sum_loss))
        if self._kept is not None or self.autowu.due(before):
            self.read()
        if self.autowu.due(before):
            self._record.flush(fatal=self._kept is None)
            self._test(before, clock)

    def read(self) -> None:
        """Read the losses since the last call. Called by every worker after the same updates."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        sums = self._ranks.sum_(torch.stack([loss for *_, loss in pending])).tolist()
        for (clock, num_samples, _), sum_loss in zip(pending, sums, strict=True):
            self.autowu.add_loss(clock, sum_loss / num_samples)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; `read` was called before."""
        copies = [list(copy) for copy in self._kept.copies] if self._kept is not None else []
        return {"autowu": self.autowu.state_dict(), "kept": copies, "test_s": self._test_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a run's beginning.

        Raises:
            UserError: If weights were kept of another model.
        """
        if state:
            self.autowu.load_state_dict(state["autowu"])
            self._test_s = state["test_s"]
        if self._kept is not None:
            self._kept.copies = [(int(samples), tuple(states)) for samples, states in state.get("kept", [])]
            own = {name: value.shape for name, value in self._comm.model.state_dict().items()}
            for samples, (weights, _) in self._kept.copies:
                if {name: value.shape for name, value in weights.items()} != own:
                    raise UserError(f"weights kept at {samples:,} samples: are not those of the model")
            if not state:
                self._kept.keep(0, minimum=0.0)

    def _test(self, before: Clock, clock: Clock) -> None:
        began = time.perf_counter()
        judgement = Judgement(*json.loads(self._ranks.run_on_rank_0(lambda: json.dumps(self.autowu.judgement()))))
        self._test_s += time.perf_counter() - began
        switch = self.autowu.adopt(before, judgement)
        if switch is None:
            if self._kept is not None:
                self._kept.keep(clock.samples, self.autowu.minimum)
            return
        back = {"weights_of": self._kept.go_back(switch.minimum)} if self._kept is not None else {}
        self._record.switch(clock, **{**switch._asdict(), "samples": clock.samples}, **back, test_s=round(self._test_s, 4))
        self.message = f"warm-up ends at update {clock.updates:,}, {switch.reason}: rate back to {switch.factor:.3g} of its peak"

    def _weights_are_finite(self) -> Tensor:
        norms = torch._foreach_norm([local(p.detach()) for p in self._comm.model.parameters()])
        return torch.stack([norm.isfinite() for norm in norms]).all()

    def _states(self) -> States:
        model, optimizer = self._comm.full_state_dicts(self._optimizer)
        clone = torch.utils._pytree.tree_map
        return tuple(clone(lambda value: value.clone() if isinstance(value, Tensor) else value, s) for s in (model, optimizer))

    def _load(self, states: States) -> None:
        self._comm.load_full_state_dicts(self._optimizer, *states)
