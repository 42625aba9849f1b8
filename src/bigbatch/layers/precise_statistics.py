r"""Precise statistics: the running mean and variance that batch norms ought to have, from a pass over data with the weights as they are.

Paper:   Wu, Johnson 2021, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, Section 3.1.
Formula: with the mean mu_B and the biased variance s_B of each batch B that passes, normalised by its own statistics,
             mu_pop = E[mu_B],    s_pop = E[mu_B^2 + s_B] - E[mu_B]^2
         over all batches: the mean and variance of everything that passed.
Units:   a batch weighs as many values (samples times places) as it has.
Differs: the paper's batches are of one size, so its E[] weighs them alike. Ghost batches normalise what the later layers see, and nothing
         else needs to be known of them.

Running averages lag behind the weights when the rate is high or the last updates were few, which large batches make so.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.layers.batch_norms import AnyBatchNorm, batch_norms

PAPER = Paper(
    method="Precise batch-norm statistics",
    title='Rethinking "Batch" in BatchNorm',
    authors="Wu, Johnson",
    year=2021,
    arxiv="2105.07576",
    where="Section 3.1",
)


def power_sums(input: Tensor) -> Tensor:
    """How many values each channel has, their sum, and the sum of their squares: what adds up over batches and workers.

    Args:
        input: Shape (N, C) or (N, C, ...).

    Returns:
        Shape (3, C), float64.

    >>> power_sums(torch.tensor([[1.0], [3.0]])).flatten().tolist()
    [2.0, 4.0, 10.0]
    """
    places = [d for d in range(input.dim()) if d != 1]
    n = input.numel() / input.shape[1]
    var, mean = (t.double() for t in torch.var_mean(input.detach(), places, correction=0))
    return n * torch.stack([torch.ones_like(mean), mean, var + mean.square()])


class Population(NamedTuple):
    """Of all values that passed."""

    mean: Tensor  # mu_pop, shape (C,)
    var: Tensor  # s_pop, shape (C,)


def population(sums: Tensor) -> Population:
    """Mean and variance of the values behind power sums of shape (3, C).

    >>> [t.item() for t in population(torch.tensor([[2.0], [4.0], [10.0]]))]
    [2.0, 1.0]
    """
    n, first, second = sums
    return Population(first / n, (second / n - (first / n).square()).clamp(min=0))


def recompute_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    add_up: Callable[[Tensor], object] | None = None,
) -> None:
    """Set the running statistics of every batch norm to those of the data, computed anew with the weights as they are.

    The passes are made in training mode, without gradients; afterwards modes, random numbers, momenta and counts of batches are as
    before. A batch norm that nothing passes through keeps what it has; so does one that keeps no running statistics.

    Args:
        model: Any module with torch's batch norms, ghost batch norms or split ones.
        batches: What passes, in batches as large as in training where there are no ghost batches; a few thousand samples do. Tensors, or
            tuples and lists that start with one.
        forward: Runs one batch through the model; `model(batch)`, or `model(batch[0])`, if left out.
        add_up: Adds a float64 tensor up over all workers, in place, such as `torch.distributed.all_reduce`; called once. A worker of
            several may have no batches, and every worker gets the same statistics.

    Raises:
        UserError: If nothing passed through any batch norm, on any worker.

    >>> layer = nn.BatchNorm1d(1)
    >>> recompute_statistics(layer, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]] * 4)])
    >>> layer.running_mean.item(), round(layer.running_var.item(), 4)  # of 0, 2, 4, 4, 4, 4
    (3.0, 2.3333)
    """
    norms = batch_norms(model).values()
    kept = [(m, m.running_mean, m.running_var) for m in norms if m.running_mean is not None and m.running_var is not None]
    if not kept:
        return
    run = forward or (lambda batch: model(batch[0] if isinstance(batch, tuple | list) else batch))
    sums = {m: torch.zeros(3, len(mean), dtype=torch.float64, device=mean.device) for m, mean, _ in kept}
    with torch.no_grad(), _training_by_batch(model), ExitStack() as watched:
        for m in sums:
            watched.callback(m.register_forward_pre_hook(partial(_watch, sums)).remove)
        for batch in batches:
            run(batch)
    joined = torch.cat([s.flatten() for s in sums.values()])
    if add_up is not None:
        add_up(joined)
    if not joined.any():
        raise UserError("batches: nothing passed through any batch norm; give at least one batch that the model takes")
    with torch.no_grad():
        for (_, mean, var), total in zip(kept, torch.split(joined, [s.numel() for s in sums.values()]), strict=True):
            if total[0] > 0:
                found = population(total.view(3, -1))
                mean.copy_(found.mean)
                var.copy_(found.var)


def _watch(sums: dict[AnyBatchNorm, Tensor], norm: AnyBatchNorm, inputs: tuple[Tensor, ...]) -> None:
    own = inputs[0][: getattr(norm, "num_clean", None)]  # of split batch norm the auxiliary is watched by itself
    if own.numel():
        sums[norm] += power_sums(own)


@contextmanager
def _training_by_batch(model: nn.Module) -> Iterator[None]:
    """Training mode that leaves running statistics and random numbers alone."""
    modes = {m: m.training for m in model.modules()}
    tracking = {m: m.track_running_stats for m in batch_norms(model).values()}
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    model.train()
    for norm in tracking:
        norm.track_running_stats = False
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for norm, track in tracking.items():
            norm.track_running_stats = track
