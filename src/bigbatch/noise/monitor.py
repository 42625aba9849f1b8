"""Signal and noise of the gradients that a training loop makes anyway, measured while it runs.

Every backward pass is one group of samples: a hook on each parameter takes the squared norm of what that pass adds, before it is added.
That is the same for one process with several micro-batches, for ranks under DistributedDataParallel (whose one hook for compression
stays free) and for FSDP2 (before gradients are reduced). After the last pass the norm of the whole gradient is taken. Nothing is sent,
and the device is not waited for, until the values are read, for many updates at once.

Cost: each gradient is read once more a pass, and each whole one once more an update, with a call into torch for each parameter: half a
millisecond to one an update of the shipped models on a CPU, 1.6 to 1.7 % on one process and 2 to 4 % on two, whose updates are shorter
(benchmarks/noise_overhead.py), 1.6 % of a small GPT (benchmarks/noise_of_language_models.py); less of larger ones, and with `only` of norm
layers less too. On a GPU calls cost more than reading: with `accumulate=True` the monitor takes the gradients of a pass from the
parameters, all at once, and adds the passes up, as autograd would have: to the same bits.

    monitor = NoiseScaleMonitor(model)
    for inputs, targets in loader:
        for x, y in zip(inputs.chunk(4), targets.chunk(4)):
            (loss_of(model(x), y) / 4).backward()           # a sum over len(x) samples, divided by 4 len(x)
            monitor.micro_batch(len(x), divisor=4 * len(x))
        monitor.update()                                    # before clipping and before zero_grad
        optimizer.step()
        optimizer.zero_grad()
    print(monitor.estimate())                               # such as "910 [700, 1,200] (400 updates)"
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.norms import each_norm, norm_of
from bigbatch.core.tensors.sharding import dense, local
from bigbatch.noise.estimate import NoiseEstimate, estimate
from bigbatch.noise.gradient_sum import GradientSum
from bigbatch.noise.reader import ALL, Measured, Pending, Reader
from bigbatch.noise.simple_noise_scale import NoiseScale
from bigbatch.noise.unchanged import Mark, check_unchanged, mark

KEPT, SAVED, READ_AFTER = 100_000, 10_000, 100
"""Updates that are remembered; those that a state dict holds; updates after which values are read from the device unasked."""
SMALL, HELD = 2**15, 2**18
"""Elements of a gradient that is small, and of small ones that are kept for a moment, to be measured by one call."""
Precondition = Callable[[str, Tensor], Tensor]
"""Takes the name of a parameter and a gradient of its shape, and gives the gradient as an optimizer weighs it; linear in it."""


class NoiseScaleMonitor:
    """Measures in any loop. See the module's docstring.

    Args:
        model: Its trainable parameters are measured, and frozen ones cost nothing. Shard it first (FSDP2); wrap it in
            DistributedDataParallel before or after.
        only: Parameters that are measured and no others, such as `norm_parameters(model)`: "all" is then all of these.
        population: Samples in the training set, if batches are drawn from it without replacement: near the full batch it matters.
        parts: Name to parameters, each measured by itself beside the whole; see `layers_of`.
        along: Also measure the variance along the last update's mean gradient, which inner-product tests ask for. Keeps one copy of
            the gradient.
        precondition: Measure gradients as an optimizer weighs them; see `bigbatch.noise.preconditioned`.
        process_group: Ranks whose gradients are averaged; "all" of them if torch.distributed runs, or None for this process alone.
        own: No rank has the mean gradient, because its exchange loses something (top-k, PowerSGD) or because each takes steps of its own
            (local SGD): each measures its own gradient, from two micro-batches at least, and the values are averaged over ranks. Under
            DistributedDataParallel give `observe` the gradients before they are exchanged.
        accumulate: Add up the gradients of the passes here: `p.grad` is None after `micro_batch` and the sum after `update`. Nothing else
            may look at gradients in between, as DistributedDataParallel does.

    Raises:
        UserError: If the model has nothing to train, or can't be measured as asked.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        only: Iterable[nn.Parameter] | None = None,
        population: float = float("inf"),
        parts: Mapping[str, Iterable[nn.Parameter]] | None = None,
        along: bool = False,
        precondition: Precondition | None = None,
        process_group: Any = "all",
        own: bool = False,
        accumulate: bool = False,
    ) -> None:
        if not population > 1:
            raise UserError(f"population = {population}: must be larger than one; give the samples of the training set, or leave it out")
        chosen = None if only is None else {id(p) for p in only}
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad and (chosen is None or id(p) in chosen)}
        self._names, self._is_whole = list(self._named), chosen is None
        if not self._named:
            where = "the model has" if chosen is None else "only: holds"
            raise UserError(f"{where} no trainable parameters: there is no gradient to measure; check requires_grad")
        self._sharded = any(isinstance(p, DTensor) for p in self._named.values())
        meshes = {p.device_mesh.ndim if isinstance(p, DTensor) else 0 for p in self._named.values()}
        if len(meshes) > 1 or max(meshes) > 1:
            raise UserError("a model sharded over a mesh of several axes, or in part: can't be measured; shard all of it over one axis")
        if self._sharded and (along or own or precondition is not None):
            raise UserError("a sharded model: has only the plain noise scale measured; leave out along, own and precondition")
        if accumulate and (self._sharded or process_group not in ("all", None) or (process_group == "all" and dist.is_initialized())):
            raise UserError("accumulate, and gradients that ranks exchange: exchanging looks at gradients after each pass; leave it out")
        self._along, self._precondition = along, precondition
        self._sum = GradientSum(self._named) if accumulate else None
        first = next(iter(self._named.values()))
        widest = reduce(torch.promote_types, (p.dtype for p in self._named.values()), torch.float32)
        self._zero = torch.zeros((), dtype=widest, device=first.device)
        number = {id(p): i for i, p in enumerate(self._named.values())}
        members = {name: [number[id(p)] for p in parameters if id(p) in number] for name, parameters in (parts or {}).items()}
        if process_group == "all":
            process_group = dist.group.WORLD if dist.is_initialized() else None
        self._reader = Reader(
            {ALL: list(number.values()), **members}, population, first.device, process_group, sharded=self._sharded, own=own
        )
        self._direction: list[Tensor] | None = None
        self._single = 0  # updates of one pass, in a row
        self._left: list[Mark] | None = None  # gradients as the last pass left them
        self._sq_along: Tensor = self._zero
        self._sq_observed: Tensor | None = None
        self._no_along = self._zero.repeat(3)
        self._held = self._zero.clone()  # stands for a norm to come
        self._counts: tuple[float, ...] = ()
        self._pending: list[Pending] = []
        self._unread: deque[Measured] = deque(maxlen=KEPT)
        self._measured: deque[Measured] = deque(maxlen=KEPT)
        self._begin_pass()
        self._begin_update()
        self._handles = [] if accumulate else list(self._watch(model))

    def micro_batch(self, num_samples: int, *, divisor: float) -> None:
        """After each backward pass.

        Args:
            num_samples: Samples of the pass; 0 for one that weighs nothing.
            divisor: What the *sum* of their losses was divided by. With a loss that is a mean over the pass, and divided by the number
                of passes, it is their product. Where samples count by weights, such as tokens, and the sum of their losses was divided
                by the sum W of all weights of the update, it is num_samples W / (weights of the pass): the mean gradient of the pass
                then weighs its share of the weights, and samples stay the unit. With unequal weights that is approximate: a ratio of
                sums is unbiased only up to terms of 1/n, and each sample is taken to be as noisy as the mean one.

        Raises:
            UserError: If a parameter had more than one gradient since the last call; not noticed with `accumulate`.
        """
        if self._sum is not None:
            self._on_gradients(self._sum.take())
        if self._twice:
            raise UserError(
                "two gradients of one parameter since the last micro_batch(): the samples of each pass must be known; call it after every "
                "backward(), add losses up before backward(), and use checkpointing with use_reentrant=False"
            )
        if num_samples:
            weight = num_samples / divisor  # the pass added weight x (mean gradient of its samples)
            self._passes.append(self._norms)
            self._factors.append(num_samples / weight**2)
            new = (num_samples, 1.0, weight, weight**2 / num_samples)
            self._counts = tuple(old + more for old, more in zip(self._counts, new, strict=True))
            if self._direction is not None:
                self._sq_along = self._sq_along + torch.stack(self._dots).sum().square() * (num_samples / weight**2)
        if self._sum is None:
            self._left = [mark(p) for p in self._named.values()]
        self._begin_pass()

    def update(self, *, loss_scale: float = 1.0) -> None:
        """After the last pass of an update, before clipping and before the step; also where the step is skipped.

        Args:
            loss_scale: Of a gradient scaler (`scaler.get_scale()`): what the losses were multiplied by. Call this before `unscale_`: the
                passes were measured as they came, and the whole must be like them.

        Raises:
            UserError: If gradients were changed since the last `micro_batch`: clipped, unscaled, averaged, or set to zero.
        """
        if self._sum is not None:
            self._sum.give_back()
        self._check_unchanged()
        self._check_passes()
        gradients = [torch.zeros_like(local(p)) if p.grad is None else dense(local(p.grad)) for p in self._named.values()]
        if self._precondition is not None:
            named = zip(self._named.items(), gradients, strict=True)
            gradients = [g if p.grad is None else self._precondition(name, g) for (name, p), g in named]
        along = self._no_along
        if self._along:
            if self._direction is not None:
                dot = torch.stack([torch.sum(g * d) for g, d in zip(gradients, self._direction, strict=True)]).sum()
                sq_norm = torch.stack(each_norm(self._direction, self._zero.dtype)).square().sum()
                along = torch.stack([self._sq_along, dot.square(), sq_norm])
            self._direction = [g.clone() for g in gradients]
        whole = [self._zero] * len(gradients)
        if self._sq_observed is None:
            self._small += [(whole, number, gradient) for number, gradient in enumerate(gradients)]
        else:  # instead of what came back: as one number, which is the sum over parameters
            whole[0] = self._sq_observed.sqrt()
        self._measure_small()
        self._pending.append(Pending(self._passes, self._factors, whole, along, self._counts, loss_scale**-2))
        self._begin_update()
        if len(self._pending) >= READ_AFTER:
            self._read()

    def _check_unchanged(self) -> None:
        if self._left is None or self._sq_observed is not None:
            return
        check_unchanged(self._named, self._left)

    def _check_passes(self) -> None:
        """Say early, and once, that updates of a single pass tell nothing."""
        self._single = self._single + 1 if len(self._passes) * self._reader.num_sharing < 2 else 0
        if self._single == 3:
            warnings.warn(
                "three updates of one backward pass each: one gradient can't tell signal from noise, and there will be no noise scale; "
                "split the batch into two micro-batches at least (or use two ranks)",
                stacklevel=3,
            )

    def observe(self, own: Tensor, mean: Tensor) -> None:  # noqa: ARG002  as `AllReduce` calls its observers
        """Gradients of this rank, flat, before they are exchanged; of all buckets, in any order.

        Raises:
            UserError: If parts of the model are measured: a bucket does not tell whose its gradients are.
        """
        if len(self._reader.parts) > 1 or not self._is_whole:
            raise UserError("parts, and gradients in buckets: only the whole model can be measured; leave out parts, and only")
        sq_norm = norm_of(own, self._zero.dtype).square()
        self._sq_observed = sq_norm if self._sq_observed is None else self._sq_observed + sq_norm

    def forget(self) -> None:
        """Leave out the passes since the last update."""
        if self._sum is not None:
            self._sum.drop()
        self._begin_pass()
        self._begin_update()

    def flush(self) -> list[Measured]:
        """The updates since the last call, read from the device and summed over ranks: every rank calls it at the same time.

        They are remembered for `estimate` too.
        """
        self._read()
        measured = list(self._unread)
        self._unread.clear()
        return measured

    def estimate(self, part: str = ALL, *, last: int | None = None, confidence: float = 0.95) -> NoiseEstimate:
        """The noise scale over the last updates; every rank calls it at the same time.

        Args:
            part: Of the model.
            last: So many updates; all since the start if left out.
            confidence: Of the two-sided interval.

        Raises:
            UserError: If the part is unknown, or no update tells signal from noise.
        """
        self._read()
        if part not in self._reader.parts:
            raise UserError(f"part {part!r}: is not measured; known: {', '.join(self._reader.parts)}")
        scales = [measured.parts[part] for measured in list(self._measured)[-last if last else None :]]
        return estimate([s.signal for s in scales], [s.noise for s in scales], confidence=confidence)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, of the last 10,000 updates, and the direction that `along` measures by; tensors and plain values.

        On several ranks, up to 100 updates whose values were not read yet are left out: reading takes all ranks.
        """
        if not self._reader.communicates:
            self._read()
        rows = [[v for scale in m.parts.values() for v in scale] + [m.noise_along] for m in list(self._measured)[-SAVED:]]
        measured = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2 * len(self._reader.parts) + 1)
        only = None if self._is_whole else self._names
        return {"direction": self._direction, "measured": measured, "parts": list(self._reader.parts), "only": only}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; estimates go on from what was measured before.

        Raises:
            UserError: If other parts, or other parameters, were measured.
        """
        if state.get("only") != (None if self._is_whole else self._names):
            raise UserError("only: other parameters were measured before; measure the same ones, or start anew")
        self._direction = state["direction"]
        if "measured" not in state:  # saved before estimates were kept
            return
        if state["parts"] != self._reader.parts:
            raise UserError(f"parts {self._reader.parts}: {state['parts']} were measured before; measure the same parts, or start anew")
        self._measured.clear()
        num_updates, width = state["measured"].shape
        if width != 2 * len(self._reader.parts) + 1:
            raise UserError(f"measured: {num_updates} rows of {width} values, where {len(self._reader.parts)} parts have two each, and one")
        for row in state["measured"].tolist():
            scales = [NoiseScale(*row[2 * i : 2 * i + 2]) for i in range(len(self._reader.parts))]
            self._measured.append(Measured(dict(zip(self._reader.parts, scales, strict=True)), row[-1]))

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, model: nn.Module) -> Iterator[Any]:
        """Hooks on parameters; on those of FSDP2 when a forward pass first gathers them whole."""
        numbers = {name: i for i, name in enumerate(self._named)}
        for name, p in self._named.items():
            if not isinstance(p, DTensor):
                yield p.register_hook(partial(self._on_gradient, numbers[name]))  # type: ignore[no-untyped-call]
        if self._sharded:
            watched: set[int] = set()

            def gathered(module: nn.Module, _: Any, prefix: str) -> None:
                for name, p in module.named_parameters(prefix=prefix, recurse=False):
                    if name in numbers and not isinstance(p, DTensor) and id(p) not in watched:
                        watched.add(id(p))
                        self._handles.append(p.register_hook(partial(self._on_gradient, numbers[name])))  # type: ignore[no-untyped-call]

            for prefix, module in model.named_modules():
                if any(True for _ in module.parameters(recurse=False)):
                    yield module.register_forward_pre_hook(partial(gathered, prefix=prefix))

    def _on_gradient(self, number: int, gradient: Tensor) -> None:
        """What a pass is about to add to a parameter's gradient."""
        gradient = dense(gradient)
        if self._precondition is not None:
            gradient = self._precondition(self._names[number], gradient)
        if self._direction is not None:
            self._dots[number] = torch.sum(gradient * self._direction[number])
        self._twice |= self._norms[number] is not self._zero
        if gradient.numel() > SMALL:
            self._norms[number] = norm_of(gradient, self._zero.dtype)
        else:
            self._norms[number] = self._held
            self._small.append((self._norms, number, gradient))
            self._num_held += gradient.numel()
            if self._num_held > HELD:
                self._measure_small()

    def _on_gradients(self, gradients: list[Tensor | None]) -> None:
        """What a pass has made, of all parameters at once."""
        weighed = {
            number: dense(gradient) if self._precondition is None else self._precondition(self._names[number], dense(gradient))
            for number, gradient in enumerate(gradients)
            if gradient is not None
        }
        if self._direction is not None:
            for number, gradient in weighed.items():
                self._dots[number] = torch.sum(gradient * self._direction[number])
        for number, norm in zip(weighed, each_norm(list(weighed.values()), self._zero.dtype), strict=True):
            self._norms[number] = norm

    def _measure_small(self) -> None:
        if self._small:
            measured = each_norm([gradient for *_, gradient in self._small], self._zero.dtype)
            for (norms, number, _), norm in zip(self._small, measured, strict=True):
                norms[number] = norm
            self._small.clear()
            self._num_held = 0

    def _read(self) -> None:
        pending, self._pending = self._pending, []
        measured = self._reader.read(pending)
        self._unread += measured
        self._measured += measured

    def _begin_pass(self) -> None:
        self._norms = [self._zero] * len(self._named)
        self._dots = [self._zero] * len(self._named)
        self._twice = False

    def _begin_update(self) -> None:
        self._passes: list[list[Tensor]] = []
        self._factors: list[float] = []
        self._small: list[tuple[list[Tensor], int, Tensor]] = []
        self._num_held = 0
        self._sq_observed = None
        self._sq_along = self._zero
        self._counts = (0.0,) * 4
        self._left = None


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by the module that holds them, such as "conv1": for `parts`.

    >>> list(layers_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    ['0', '2']
    """
    layers = {name or "model": list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    return {name: parameters for name, parameters in layers.items() if any(p.requires_grad for p in parameters)}
