"""Where `bigbatch.adversarial` meets the loop: twins for the micro-batches of each update, and the ranks that make them.

With `makers = "ranks"` the first half of the ranks trains, and rank i of it has rank i + W/2 make its examples. What is trained is the
same, whoever makes them: a run may go on with another number of workers, or alone.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bigbatch.adversarial.concurrent import ConAdv, loss_weights, made_here, share_at
from bigbatch.adversarial.fgsm import Attack, Batch
from bigbatch.adversarial.makers import RemoteMaker, StreamMaker, serve_examples
from bigbatch.batching.absa import ABSASection
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import CheckpointError, Elsewhere, RecipeError, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.tensors.alignment import aligned
from bigbatch.core.tensors.structure import describe
from bigbatch.layers.split_batch_norm import adversarial_stream
from bigbatch.recipe import Recipe
from bigbatch.recipe.optional_sections import Adversarial
from bigbatch.tasks.task import Task
from bigbatch.train.adversarial.replaced_samples import ReplacedSamples
from bigbatch.train.data.input_range import Range, data_range
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.precision import DTYPES, autocast
from bigbatch.train.data.shares import Work
from bigbatch.train.data.stream import idle_batch
from bigbatch.train.setup.build import build_model, seed_everything
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result
from bigbatch.train.update.batches import UpdateBatches
from bigbatch.train.update.gradient_accumulation import Pass


class Pair(NamedTuple):
    """A trainer and the rank that makes its examples."""

    peer: int  # rank of the other
    group: Any  # of all, over gloo
    remote: RemoteMaker | None  # None on the maker itself


class AdversarialPairs(UpdateBatches):
    """An update's micro-batches, each followed by its adversarial examples.

    Args:
        section: Of the recipe.
        recipe: Of the run.
        conadv: Makes and holds the twins.
        idle: For passes that weigh nothing.
    """

    def __init__(self, section: Adversarial, recipe: Recipe, conadv: ConAdv, idle: MicroBatch) -> None:
        super().__init__(recipe)
        self._section, self._conadv, self._idle = section, conadv, idle
        self._reduction: Literal["sum", "mean"] = section.loss or ("sum" if recipe.optimizer.name == "lars" else "mean")
        self._read = Clock()  # where the stream stands
        self._held: dict[str, Any] | None = None  # by all workers of a run that is resumed

    def begin(self, clock: Clock, work: Callable[[int], Work]) -> Clock:
        """Cuts what the workers that saved held into what this one is to hold."""
        self._work = work
        if self._held is not None:
            held, self._held = self._held, None
            updates, at = [], clock
            for whole in held["ahead"]:
                if any(len(part) != self._num_samples(at) for part in whole):
                    raise CheckpointError(f"samples held for an update ahead: {len(whole[0])}, must be {self._num_samples(at)}")
                updates.append(self._own_pieces(whole, self._num_samples(at)))
                at = at.after(self._num_samples(at))
            self._conadv.load_state_dict({"number": held["number"], "ahead": updates})
        self._read = clock
        for _ in range(len(self._conadv)):
            self._read = self._read.after(self._num_samples(self._read))
        return self._read

    def share(self, clock: Clock) -> float:
        """As the recipe has it after this part of the run."""
        s = self._section
        return share_at(clock.samples / self._recipe.total_samples, share=s.share, full_until=s.full_until, off_at=s.off_at)

    def of_update(self, stream: Iterator[MicroBatch], clock: Clock, num_samples: int, work: Work) -> Iterable[MicroBatch | Pass]:
        """Each micro-batch, then its twin; only micro-batches once the share is zero."""
        share = self.share(clock)
        if not share:
            return super().of_update(stream, clock, num_samples, work)

        def read() -> list[Batch] | None:
            to_read = self._num_samples(self._read)
            if to_read <= 0 or not self.share(self._read):
                return None
            ahead = self._work(to_read)
            self._read = self._read.after(to_read)
            return list(itertools.islice(stream, len(ahead.sizes)))[ahead.idle :]

        twins, weights = self._conadv.next_update(read), loss_weights(self._reduction, share)
        assert twins is not None
        passes: list[MicroBatch | Pass] = [self._idle] * work.idle
        for inputs, targets, adversarial in twins:
            passes.append(Pass(inputs, targets, weights.clean))
            passes.append(Pass(adversarial, targets, weights.adversarial, adversarial=True))
        return passes

    def state_dict(self) -> dict[str, Any]:
        """Samples and directions of the updates ahead, each joined into one; waits for what is still being made."""
        state = self._conadv.state_dict()
        return {"number": state["number"], "ahead": [_joined(update) for update in state["ahead"]]}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Shares are consecutive: joined, they are the update, whatever the number of workers was."""
        if states and "ahead" in states[0]:
            updates = zip(*(state["ahead"] for state in states), strict=True)
            self._held = {"number": int(states[0]["number"]), "ahead": [_joined([u for u in shares if u]) for shares in updates]}
            for inputs, targets, directions in self._held["ahead"]:
                for part, like, dtype in ((inputs, 0, None), (targets, 1, None), (directions, 0, directions.dtype)):
                    own = self._idle[like]
                    if part.layout != torch.strided or part.dtype != (dtype or own.dtype) or part.shape[1:] != own.shape[1:]:
                        raise CheckpointError(f"samples held for updates ahead: of shape {tuple(part.shape)}, not as the task's")

    def _num_samples(self, clock: Clock) -> int:
        return min(self._recipe.batch.global_batch, self._recipe.total_samples - clock.samples)

    def _own_pieces(self, whole: tuple[Tensor, ...], num_samples: int) -> list[tuple[Tensor, ...]]:
        share, sizes, idle = self._work(num_samples)
        if not share.num_samples:
            return []
        own = (part[share.start : share.start + share.num_samples] for part in whole)
        return list(zip(*(map(aligned, torch.split(part, sizes[idle:])) for part in own), strict=True))


def _joined(pieces: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Pieces of (inputs, targets, directions) as one; empty where there is none."""
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


@contextmanager
def paired(recipe: Recipe, ranks: Ranks) -> Iterator[tuple[Ranks, Pair | None]]:
    """Part the ranks into trainers and makers, where the recipe asks for it and there are several.

    Yields:
        The trainers, as this rank sees them, and its other half; all ranks and None where nothing is parted.

    Raises:
        RecipeError: If their number is odd.
    """
    world_size, section = ranks.world_size, recipe.adversarial
    if section is None or section.makers != "ranks" or world_size == 1:
        yield ranks, None
        return
    if world_size % 2:
        raise (RecipeError if ranks.is_rank_0 else Elsewhere)(
            f'adversarial.makers = "ranks" with {world_size} workers: half of them make examples, one for each of the others; start '
            f"{world_size - 1} or {world_size + 1} workers"
        )
    half = world_size // 2
    trainers = dist.new_group(list(range(half))) if half > 1 else None
    among = dist.new_group(backend="gloo")
    peer = (ranks.rank + half) % world_size
    remote = RemoteMaker(peer, group=among) if ranks.rank < half else None
    try:
        yield Ranks(ranks.rank % half, half, ranks.device, trainers), Pair(peer, among, remote)
    finally:
        if remote is not None:
            remote.close()


def make_examples(task: Task, recipe: Recipe, ranks: Ranks, pair: Pair) -> Result:
    """The whole run of a rank that makes examples.

    A signal to stop reaches trainers too, and they decide what it means.

    Returns:
        A result without scores: the trainers have them.

    Raises:
        UserError: If the model can't be built; a trainer says why.
        LostWorkers: If the trainer is lost.
    """
    with interruptible():
        seed_everything(recipe.seed)
        try:
            model = build_model(task, recipe, ranks.device).train()
        except UserError as error:
            raise Elsewhere(str(error)) from error
        attack = _attack(task, recipe, ranks, model)
        updates = serve_examples(attack, pair.peer, device=ranks.device, group=pair.group)
    return Result(task.name, updates=updates, samples=0)


def build_update_batches(task: Task, recipe: Recipe, comm: Comm, train: Any, *, pair: Pair | None, quiet: bool = True) -> UpdateBatches:
    """The passes of updates, as the recipe's [adversarial] asks for them, or its [batch.rule].

    Args:
        task: Its losses are attacked.
        recipe: Of the run.
        comm: Of the trainers; knows the model.
        train: The training set.
        pair: The rank that makes examples for this one, if there is one.
        quiet: Don't say where concurrency saves nothing.

    Raises:
        RecipeError: If inputs can't be perturbed, or their range is not known or does not fit, or examples can't be made as asked.
    """
    section, device = recipe.adversarial, comm.ranks.device
    if isinstance(rule := recipe.batch.rule, ABSASection) and rule.share:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed
            _check_one_tensor(task, idle_batch(recipe, train, device), 'batch.rule.kind = "absa"')
        try:
            return ReplacedSamples(task, recipe, comm, eps=rule.eps, within=_range(rule, train, "batch.rule"))
        except UserError as error:
            raise RecipeError(f"batch.rule: {error}") from None
    if section is None:
        return UpdateBatches(recipe)
    idle = idle_batch(recipe, train, device)
    _check_one_tensor(task, idle, "[adversarial]")
    attack, (low, high) = _attack(task, recipe, comm.ranks, comm.model), _range(section, train, "adversarial")
    alone = False
    try:
        if pair is not None and pair.remote is not None:
            maker = pair.remote.maker(comm.model)
        elif section.makers == "stream":
            maker = StreamMaker(attack, device)
        else:
            maker, alone = made_here(attack), True
        eps = section.eps * (high.double() - low.double())
        step, least, most = (value.to(device, DTYPES[recipe.precision]) for value in (eps, low, high))
        conadv = ConAdv(maker, eps=step, low=least, high=most, tau=section.tau)
    except UserError as error:
        raise RecipeError(f"adversarial: {error}") from None
    if alone and section.tau and comm.ranks.is_rank_0 and not quiet:
        print(
            f"adversarial: the trainer makes its own examples, in turn with its updates: tau = {section.tau} saves no time; with twice the "
            'workers and makers = "ranks" it does',
            file=sys.stderr,
        )
    return AdversarialPairs(section, recipe, conadv, idle)


def _check_one_tensor(task: Task, batch: MicroBatch, what: str) -> None:
    """Refuse what an adversarial step can't be taken from."""
    for name, part in zip(("inputs", "targets"), batch, strict=True):
        if not isinstance(part, Tensor):
            raise RecipeError(
                f"{what} with {name} that are {describe(part)}, of task {task.name}: an adversarial example is a step from one tensor; "
                f"make {name} one tensor, or leave it out"
            )
    if getattr(task, "outputs", None) is not None:
        raise RecipeError(
            f"{what} with task {task.name}, which calls its model by outputs(): adversarial examples are made by model(inputs); do in the "
            "model what outputs() does, or leave one of them out"
        )


def _range(section: Adversarial | ABSASection, train: Any, name: str) -> Range:
    if section.low is not None and section.high is not None:
        return Range(torch.tensor(section.low), torch.tensor(section.high))
    if not isinstance(train, TensorDataset):
        raise RecipeError(f"{name}.low and high: are not given, and the training set is not in memory to look at; give both")
    if not train.tensors[0].is_floating_point():
        raise RecipeError(
            f"[{name}] with inputs of {train.tensors[0].dtype}: have no direction to step in; it is for images and other measures"
        )
    return data_range(train.tensors[0])


def _attack(task: Task, recipe: Recipe, ranks: Ranks, model: nn.Module) -> Attack:
    @contextmanager
    def within() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(adversarial_stream(model))
            stack.enter_context(autocast(recipe.precision, ranks.device))
            yield

    return Attack(model, task.losses, within=within, seed=(recipe.seed, ranks.rank))
