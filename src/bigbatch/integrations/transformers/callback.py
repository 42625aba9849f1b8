"""A callback of Transformers' `Trainer`: the noise scale before clipping, the clock in samples, and the batch that a rule sets.

The Trainer's hooks come too late (`on_pre_optimizer_step` sees clipped gradients) and do not see inputs. So the callback is given the
Trainer, and goes around two methods that are there to be overridden: `training_step`, which is one forward and backward pass and ends
before clipping, and `log`. What a run measured is saved in the Trainer's own state, below `stateful_callbacks`.
"""

import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.integrations.samples import samples_of_all
from bigbatch.integrations.transformers.passes import check_loss, pass_of
from bigbatch.integrations.transformers.ruled_batch import RuledBatch
from bigbatch.integrations.transformers.scalars import scalars
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.schedules.clock_lr import ClockLR

with needed("the adapter to Transformers", extra="transformers"):
    from accelerate.utils import DistributedType, find_batch_size
    from transformers import TrainerCallback

NAME = "bigbatch"
"""Of our part of the Trainer's state."""


class BigBatchCallback(TrainerCallback):  # type: ignore[misc]
    """`trainer.add_callback(BigBatchCallback(trainer))`, before `trainer.train()`. See the module's docstring.

    Each training log gets `noise_scale`, with `noise_scale_lower` and `noise_scale_upper`, in samples: of the gradients before clipping,
    over the last updates; a value that is not finite is left out. With `optimizers=build(model, recipe)` the scheduler counts the samples
    that each update really had, a short last one of an epoch too, and a `[batch.rule]` sets `args.gradient_accumulation_steps`.

    Args:
        trainer: A `transformers.Trainer`.
        layers: Also log `noise_scale/NAME` of each layer.
        last: Updates that a logged value is over; so many are saved.
        confidence: Of the interval.

    Attributes:
        monitor: A `NoiseScaleMonitor`, from the start of training on.

    Raises:
        UserError: If `last` is not positive. When training starts: if gradients can't be measured (DeepSpeed, FSDP 1, DataParallel, tensor,
            context or sequence parallelism), or the Trainer's batch is not the scheduler's. At the first pass: see `check_loss`.
    """

    def __init__(self, trainer: Any, *, layers: bool = False, last: int = 500, confidence: float = 0.95) -> None:
        check_positive("last", last)
        self._trainer, self._layers, self._last, self._confidence = trainer, layers, last, confidence
        self.monitor: NoiseScaleMonitor | None = None
        schedule = getattr(trainer.lr_scheduler, "schedule", None)
        self._ruled = schedule if isinstance(schedule, RuledBatch) else None
        self._accumulation: int = trainer.args.gradient_accumulation_steps
        self._scheduler: ClockLR | None = None
        self._ranks = SINGLE_PROCESS
        self._checked = False
        self._passes = self._resumed_passes = 0  # of the epoch so far; of it when training starts
        self._seen: list[tuple[UpdateMeasurement, Tensor]] = []
        self._loss = torch.zeros(())
        self._begin_update()
        trainer.train = partial(self._train, trainer.train)
        trainer.training_step = partial(self._training_step, trainer.training_step)
        trainer.log = partial(self._log, trainer.log)
        if self._ruled is not None:
            trainer._init_training_state = partial(self._init_training_state, trainer._init_training_state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Measure from here on; a resumed run goes on where it was saved."""
        trainer = self._trainer
        self._check_place()
        self._ranks = Ranks(dist.get_rank(), dist.get_world_size(), args.device) if dist.is_initialized() else SINGLE_PROCESS
        data = trainer.train_dataset
        self.monitor = NoiseScaleMonitor(
            trainer.model,
            population=len(data) if hasattr(data, "__len__") and len(data) > 1 else float("inf"),
            parts=(layers := layers_of(trainer.model) if self._layers else {}),
        )
        self._names = list(layers)
        self._scheduler = trainer.lr_scheduler if isinstance(trainer.lr_scheduler, ClockLR) else None
        saved = state.stateful_callbacks.get(NAME, {}) if state.global_step else {}
        if saved:
            measured = torch.tensor(saved["measured"], dtype=torch.float64).reshape(len(saved["measured"]), -1)
            if len(measured):
                self.monitor.load_state_dict({"direction": None, "measured": measured, "parts": saved["parts"]})
        self._resumed_passes, self._seen = saved.get("passes", 0), []
        self._begin_update()
        self._check_batch()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Count passes anew."""
        self._passes, self._resumed_passes = self._resumed_passes, 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """After the optimizer's step, and before the scheduler's."""
        own, loss, began = self._num_samples, self._loss, self._began
        self._begin_update()
        if self._scheduler is None:
            return
        num_samples = samples_of_all(own, args.device)
        self._scheduler.global_batch = num_samples
        if self._ruled is not None:
            lr = float(self._scheduler.optimizer.param_groups[0]["lr"])
            self._seen.append((UpdateMeasurement(num_samples, lr=lr, seconds=self._began - began), loss))
            if not self._trainer.accelerator.optimizer_step_was_skipped:
                self._follow(self._ruled, num_samples)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the scheduler's step, and before the Trainer logs and saves."""
        if self._scheduler is not None:
            self._scheduler.global_batch = self._nominal
            if self._ruled is not None and self._scheduler.clock.samples >= self._ruled.recipe.total_samples:
                control.should_training_stop = True
                control.should_save |= _name(args.save_strategy) == "steps"
        if control.should_save:
            self._store(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Before the Trainer saves."""
        if control.should_save:
            self._store(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Before the Trainer saves what was best."""
        if self._trainer.is_in_train and _name(args.save_strategy) == "best":
            self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Read what is measured, while all processes are here; the hooks come off where `train` ends."""
        if self.monitor is not None:
            self.monitor.flush()

    def _train(self, train: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave the Trainer as it was, also where training is interrupted: it computes from its arguments how long a resumed run is."""
        try:
            return train(*args, **kwargs)
        finally:
            self._trainer.args.gradient_accumulation_steps = self._accumulation
            if self.monitor is not None:
                self.monitor.close()

    def _training_step(self, training_step: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self.monitor is None:
            raise UserError("training_step() outside of train(): there is nothing to measure yet; call trainer.train()")
        trainer = self._trainer
        if not self._checked:
            check_loss(trainer, inputs, num_items_in_batch, may_grow=self._ruled is not None)
            self._checked = True
        self._num_samples += find_batch_size(inputs) or 0  # also where none has a label: the clock counts them
        num_samples, divisor = pass_of(trainer, inputs, num_items_in_batch)
        self._passes += 1
        loss: Tensor = training_step(model, inputs, num_items_in_batch)
        self._loss = self._loss.to(loss.device) + loss
        self.monitor.micro_batch(num_samples, divisor=divisor)
        if trainer.accelerator.sync_gradients:
            scaler = trainer.accelerator.scaler
            self.monitor.update(loss_scale=scaler.get_scale() if scaler is not None else 1.0)
        return loss

    def _log(self, log: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.monitor is not None and self._trainer.is_in_train and {"loss", "learning_rate"} <= logs.keys():
            logs.update(scalars(self.monitor, layers=self._names, last=self._last, confidence=self._confidence))
            if self._ruled is not None:
                logs["global_batch"] = self._ruled.global_batch
        log(logs, *args, **kwargs)

    def _init_training_state(self, init: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Epochs and passes that a resumed run has behind it: the Trainer computes them as if the batch had never changed."""
        found: tuple[int, int] = init(*args, **kwargs)
        state = self._trainer.state
        saved = state.stateful_callbacks.get(NAME) if state.global_step else None
        return (saved["epoch"], 0 if self._trainer.args.ignore_data_skip else saved["passes"]) if saved else found

    def _begin_update(self) -> None:
        self._num_samples, self._loss, self._began = 0, torch.zeros(()), time.monotonic()

    def _follow(self, ruled: RuledBatch, num_samples: int) -> None:
        """Let the rule decide, and change the accumulation as far as the Trainer's count of passes allows."""
        assert self._scheduler is not None
        clock = self._scheduler.clock.after(num_samples)
        if ruled.is_due(clock):
            self._observe(ruled)
        ruled.decide(clock)
        over = self._passes == self._passes_per_epoch
        self._trainer.args.gradient_accumulation_steps = ruled.adopt(self._passes, self._unit, epoch_over=over)

    def _observe(self, ruled: RuledBatch) -> None:
        """Tell the rule of the updates since the last call; every process does at the same time."""
        assert self.monitor is not None
        measured = self.monitor.flush()
        seen, self._seen = self._seen, []
        if not seen:
            return
        losses = self._ranks.sum_(torch.stack([loss for _, loss in seen]).double()) / self._ranks.world_size
        for (update, _), loss, of_update in zip(seen, losses.tolist(), measured, strict=True):
            ruled.observe(update._replace(loss=loss, signal=of_update.signal, noise=of_update.noise))

    def _store(self, state: Any) -> None:
        """What a resumed run needs, as plain values; every process calls it at the same time."""
        assert self.monitor is not None
        if self._ruled is not None:
            self._observe(self._ruled)
        self.monitor.flush()
        measured = self.monitor.state_dict()
        begun = state.epoch or 0.0
        epoch = int(begun + 1e-9)
        passes = 0 if abs(begun - epoch) < 1e-9 else self._passes
        rows = measured["measured"][-self._last :].tolist()
        state.stateful_callbacks[NAME] = {"parts": measured["parts"], "measured": rows, "epoch": epoch, "passes": passes}

    def _check_place(self) -> None:
        trainer, kind = self._trainer, self._trainer.accelerator.distributed_type
        if trainer.args.n_gpu > 1:
            raise UserError(f"DataParallel over {trainer.args.n_gpu} GPUs: gradients are joined before they are seen; start with torchrun")
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP):
            raise UserError(f"{kind.value}: gradients are not the parameters' own; use DistributedDataParallel or FSDP 2 (torchrun)")
        if kind == DistributedType.FSDP and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
            raise UserError('FSDP 1: parameters are flattened, and can\'t be told apart; use fsdp_config={"version": 2}')
        if max(trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()) > 1:
            raise UserError("tensor, context or sequence parallelism: several processes share a sample; leave the callback out")

    def _check_batch(self) -> None:
        """Whether the Trainer makes updates of the recipe's samples; set the accumulation where a rule does."""
        args, scheduler, ruled = self._trainer.args, self._scheduler, self._ruled
        processes = 1 if self._trainer.accelerator.split_batches else self._ranks.world_size
        self._unit: int = args.train_batch_size * processes
        self._nominal = scheduler.global_batch if scheduler is not None else 0
        smallest = self._unit * self._accumulation
        if ruled is None:
            if scheduler is not None and scheduler.global_batch != smallest:
                raise UserError(
                    f"global_batch = {scheduler.global_batch}: the Trainer makes updates of {smallest} samples ({args.train_batch_size} x "
                    f"{processes} processes x {self._accumulation} passes); take training_arguments(recipe), or set these"
                )
            return
        self._check_ruled(ruled, smallest)
        ruled.connect(self._ranks)
        self._passes_per_epoch = len(self._trainer.callback_handler.train_dataloader)
        args.gradient_accumulation_steps = ruled.global_batch // self._unit

    def _check_ruled(self, ruled: RuledBatch, smallest: int) -> None:
        ruled.check_unit(self._unit)
        if smallest > ruled.smallest:
            raise UserError(
                f"gradient_accumulation_steps = {self._accumulation}: makes updates of {smallest} samples, and the rule starts from "
                f"{ruled.smallest}; take training_arguments(recipe)"
            )
        data, expected = self._trainer.train_dataset, ruled.recipe.num_train_samples
        if not hasattr(data, "__len__") or len(data) != expected:
            number = len(data) if hasattr(data, "__len__") else "an unknown number of"
            raise UserError(f"num_train_samples = {expected}: the train_dataset has {number} samples; set it in the recipe")
        if _name(getattr(self._trainer.args, "train_sampling_strategy", "")) == "batch_rebalance":
            raise UserError('train_sampling_strategy = "batch_rebalance" with a [batch.rule]: plans batches ahead; choose another')


def _name(choice: Any) -> str:
    """Of one of the Trainer's strategies, which may be an enumeration or a string."""
    return str(getattr(choice, "value", choice))
