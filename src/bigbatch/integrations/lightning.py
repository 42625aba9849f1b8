"""bigbatch in Lightning: a recipe's optimizer and schedule in `configure_optimizers`, and the rest as one callback.

    class Net(lightning.LightningModule):
        def configure_optimizers(self):
            return configure(self, recipe)  # the rate follows the samples: it moves once an update, not once a pass or a process

    lightning.Trainer(callbacks=[BigBatch(ghost_batch=recipe.batch.ghost_batch)], accumulate_grad_batches=4)

Losses are means over the samples of a pass, as Lightning divides them by `accumulate_grad_batches`, and every process has as many samples.
Lightning divides a short last window of an epoch by the same number; that is left as it is, and measured as it is.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigbatch.batching.decision import BatchRule, UpdateMeasurement
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.extras import needed
from bigbatch.integrations.accumulation import Accumulation, BatchOfClock
from bigbatch.integrations.samples import samples_of_all
from bigbatch.layers.batch_norms import batch_norms
from bigbatch.layers.ghost_batch_norm import GhostBatchNorm, convert_batch_norm
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.reader import ALL
from bigbatch.optim.from_recipe import build_optimizer
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import ClockLR
from bigbatch.schedules.scheduler_from_recipe import build_scheduler

with needed("the Lightning callback", extra="lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.data import extract_batch_size


def configure(module: LightningModule, recipe: Recipe) -> dict[str, Any]:
    """What `configure_optimizers` returns: the recipe's optimizer, and its schedule, stepped once per update.

    Args:
        module: The module itself: `return configure(self, recipe)`.
        recipe: From `Recipe.named`, `Recipe.load` or `plan(...).recipe`. Its batch is that of all processes and passes of an update.

    Raises:
        UserError: As `build_optimizer` and `build_scheduler`; and if the recipe clips gradients and the trainer does not clip the same.
    """
    clip_norm, trainer = recipe.optimizer.clip_norm, module.trainer
    if clip_norm is not None and (trainer.gradient_clip_val != clip_norm or trainer.gradient_clip_algorithm not in (None, "norm")):
        raise UserError(
            f"gradient_clip_val = {trainer.gradient_clip_val}: the recipe clips gradients at a norm of {clip_norm:g}; give "
            f"Trainer(gradient_clip_val={clip_norm:g}), or recipe.replace({{'optimizer.clip_norm': None}}) here"
        )
    optimizer = build_optimizer(module, recipe)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": build_scheduler(optimizer, recipe), "interval": "step"}}


class BigBatch(Callback):
    """Measures the gradient noise scale before clipping, and has batch norms and accumulation follow the recipe.

    The noise scale with its interval goes to the module's logger and to `callback_metrics`, as "noise_scale", "noise_scale_lower" and
    "noise_scale_upper", in samples. A schedule of `configure` counts the samples that updates really have. State is saved in checkpoints.

    Args:
        noise: Whether to measure; "layers": each layer too, logged as "noise_scale/NAME".
        every_updates: Updates from one look at the values to the next; the trainer's `log_every_n_steps` if left out. Looking makes a GPU
            wait once.
        over_updates: An estimate is over so many of the last updates.
        ghost_batch: Batch norms normalise over so many samples of a pass; None leaves them as they are.
        batch_rule: Sets `accumulate_grad_batches`, see `Accumulation`: from the next place in the epoch on that is a multiple of the new
            number and has as many passes left, since Lightning counts passes from the start of an epoch. The rate is the schedule's.
        largest: Most samples of an update; needed with a `batch_rule`.
        along: Also measure what inner-product tests ask for.
        num_samples: Samples of a batch; the size of its first tensor if left out.

    Raises:
        UserError: If arguments contradict each other; at the start of training, if the module or the trainer can't be followed.
    """

    def __init__(
        self,
        *,
        noise: bool | Literal["layers"] = True,
        every_updates: int | None = None,
        over_updates: int = 400,
        ghost_batch: int | None = None,
        batch_rule: BatchRule | BatchOfClock | None = None,
        largest: int | None = None,
        along: bool = False,
        num_samples: Callable[[Any], int] = extract_batch_size,
    ) -> None:
        if every_updates is not None:
            check_positive("every_updates", every_updates)
        check_positive("over_updates", over_updates)
        if batch_rule is not None and largest is None:
            raise UserError("batch_rule: needs largest, the most samples of an update over all processes")
        self._noise, self._along, self._ghost_batch, self._num_samples = noise, along, ghost_batch, num_samples
        self._every_updates, self._over_updates = every_updates, over_updates
        self._accumulation: Accumulation | None = None
        if batch_rule is not None and largest is not None:
            self._accumulation = Accumulation(batch_rule, largest=largest, every_updates=every_updates or 20)
            if self._accumulation.measures and not noise:
                raise UserError("noise = False: the batch_rule needs it; leave it out")
        self.clock = Clock()
        self.monitor: NoiseScaleMonitor | None = None
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._saved: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._pending: list[tuple[UpdateMeasurement, Tensor]] = []
        self._schedulers: list[ClockLR] = []
        self._pass_samples = self._largest_pass = self._samples = self._num_passes = self._of_all = 0
        self._losses: list[Tensor] = []
        self._passes, self._wanted = 1, 1  # of an update now, and as soon as the place in the epoch allows
        self._lr, self._began = float("nan"), 0.0
        self._measured = self._stepped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Convert batch norms, before the optimizer is built and the model wrapped."""
        if stage == "fit" and self._ghost_batch is not None:
            convert_batch_norm(pl_module, self._ghost_batch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch gradients, and go on from a checkpoint."""
        self._check(trainer, pl_module)
        self._trainer = trainer
        self._schedulers = [c.scheduler for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, ClockLR)]
        saved, self._saved = self._saved, {}
        self.clock = Clock(*saved.get("clock", Clock()))
        self._pending.clear()
        if self._noise:
            self._parts = layers_of(pl_module) if self._noise == "layers" else {}
            self.monitor = NoiseScaleMonitor(pl_module, parts=self._parts, along=self._along)
            if "noise" in saved:
                self.monitor.load_state_dict(saved["noise"])
        self._passes = self._wanted = trainer.accumulate_grad_batches
        if self._accumulation is not None and saved:
            self._accumulation.load_state_dict(saved["rule"])
            trainer.accumulate_grad_batches = self._passes = saved["passes"]
            self._wanted, self._largest_pass = saved["wanted"], saved["pass"]
        self._begin_update()

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if not module.automatic_optimization:
            raise UserError(
                "automatic_optimization = False: the callback can't tell where an update ends; use bigbatch.noise.NoiseScaleMonitor in "
                "your training_step, or automatic optimization"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise UserError(f"{type(trainer.strategy).__name__}: accumulates gradients out of sight; use DDP, FSDP2 or one device")
        if self._ghost_batch is not None and any(not isinstance(norm, GhostBatchNorm) for norm in batch_norms(module).values()):
            raise UserError("sync_batchnorm = True: replaces the ghost batch norms that were asked for; leave it out, or ghost_batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count the samples of the pass to come."""
        self._pass_samples = self._num_samples(batch)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Measure a pass; with a gradient scaler the whole too, which is unscaled before the next hook."""
        self._samples += self._pass_samples
        self._num_passes += 1
        self._largest_pass = max(self._largest_pass, self._pass_samples)
        if self.monitor is None:
            return
        self.monitor.micro_batch(self._pass_samples, divisor=self._pass_samples * trainer.accumulate_grad_batches)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and not trainer.fit_loop._should_accumulate():
            self.monitor.update(loss_scale=scaler.get_scale())
            self._measured = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the gradient of the update before it is clipped, and tell the schedule how many samples it is of."""
        if self.monitor is not None and not self._measured:
            self.monitor.update()
        self._stepped, self._lr = True, float(optimizer.param_groups[0]["lr"])
        self._of_all = samples = samples_of_all(self._samples, pl_module.device)
        for scheduler in self._schedulers if samples else []:
            if self.clock.updates == 0 and self._accumulation is None and samples != scheduler.global_batch:
                warnings.warn(
                    f"an update has {samples:,} samples ({self._num_passes} x {self._largest_pass} on {trainer.world_size} processes), and "
                    f"the recipe is for {scheduler.global_batch:,}: its rate is not meant for this batch; plan for it, or change the "
                    "loader's batch or accumulate_grad_batches",
                    stacklevel=2,
                )
            scheduler.global_batch = samples

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """After an update: now and then look at the values, log them, and ask the rule."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())
        if not self._stepped:
            return
        num_samples, now = self._of_all, time.monotonic()
        if num_samples:  # else every training_step returned None
            self.clock = self.clock.after(num_samples)
            loss = torch.stack(self._losses).sum() if self._losses else torch.full((), float("nan"), device=pl_module.device)
            if self.monitor is not None and self._accumulation is not None:  # who reads them
                self._pending.append((UpdateMeasurement(num_samples, lr=self._lr, seconds=now - self._began), loss))
        self._begin_update()
        every = self._every_updates or trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by another object
        if self.monitor is not None and self.clock.updates % every == 0:
            self._read(trainer, self.monitor)
            self._log(trainer, self.monitor)
        if self._accumulation is not None and self.clock.updates:
            self._follow_rule(trainer, self._accumulation, batch_idx + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take the hooks off the model; `monitor.estimate()` still answers."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """The same after an error."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints, which every process takes part in."""
        if self.monitor is None and self.clock.updates == 0:
            return {}
        state: dict[str, Any] = {"clock": tuple(self.clock)}
        if self.monitor is not None:
            if self._trainer is not None:
                self._read(self._trainer, self.monitor)
            state["noise"] = self.monitor.state_dict()
        if self._accumulation is not None:
            state |= {"rule": self._accumulation.state_dict(), "passes": self._passes, "wanted": self._wanted, "pass": self._largest_pass}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse; used when training starts."""
        self._saved = state_dict

    def _begin_update(self) -> None:
        self._samples = self._num_passes = 0
        self._losses.clear()
        self._measured = self._stepped = False
        self._began = time.monotonic()

    def _read(self, trainer: Trainer, monitor: NoiseScaleMonitor) -> None:
        """Read what was measured, and tell the rule; every process does at the same time."""
        measured, pending, self._pending = monitor.flush(), self._pending, []
        if self._accumulation is None or not pending:
            return
        losses: Tensor = trainer.strategy.reduce(torch.stack([loss for _, loss in pending]), reduce_op="mean")
        for (seen, _), loss, m in zip(pending, losses.tolist(), measured[-len(pending) :], strict=True):
            self._accumulation.observe(seen._replace(loss=loss, signal=m.signal, noise=m.noise, noise_along=m.noise_along))

    def _log(self, trainer: Trainer, monitor: NoiseScaleMonitor) -> None:
        """The estimates so far, at the step that Lightning logs this update's other values at."""
        values: dict[str, float] = {}
        for part in (ALL, *self._parts):
            try:
                told = monitor.estimate(part, last=self._over_updates)
            except UserError:  # updates of one pass, which the monitor warns of
                continue
            name = "noise_scale" if part == ALL else f"noise_scale/{part}"
            values |= {name: told.noise_scale, f"{name}_lower": told.lower, f"{name}_upper": told.upper}
        if values:
            for logger in trainer.loggers:
                logger.log_metrics(values | {"samples": self.clock.samples}, step=trainer.global_step - 1)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def _follow_rule(self, trainer: Trainer, rule: Accumulation, passes_of_epoch: int) -> None:
        """Ask for the passes of the next update, and begin with them where Lightning counts a multiple of them."""
        if self.monitor is not None and self.clock.updates % rule.every_updates == 0:
            self._read(trainer, self.monitor)
        per_pass = self._largest_pass * trainer.world_size
        wanted = rule.passes(self.clock, now=self._wanted, samples_of_a_pass=per_pass)
        if rule.measures and self.clock.updates % rule.every_updates == 0:
            wanted = trainer.strategy.broadcast(wanted)  # clocks differ between processes
        self._wanted = wanted
        left = 0 if trainer.is_last_batch else trainer.num_training_batches - passes_of_epoch
        if wanted != self._passes and (left == 0 or (passes_of_epoch % wanted == 0 and left >= wanted)):  # else a short window at once
            trainer.accumulate_grad_batches = self._passes = wanted
