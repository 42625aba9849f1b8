"""Does a checkpoint fit? Its own parts with one another, and the run's model and optimizer, before anything is taken from it.

Checksums tell that a file is as it was written. They don't tell that it is of this version, of this model, or that nobody edited it.
"""

import random
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bigbatch.core.clock import Clock
from bigbatch.core.storage.reading import first_mistake
from bigbatch.recipe import Recipe

Count = Annotated[StrictInt, Field(ge=0)]
Seconds = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Score = Annotated[StrictFloat, Field(lt=float("inf"))]  # minus infinity: none yet


class _Part(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="ignore")


class _OptimizerState(_Part):
    state: dict[StrictInt, dict[StrictStr, Any]]
    param_groups: list[dict[StrictStr, Any]]


class _Random(_Part):
    python: Annotated[list[Any], Field(min_length=3, max_length=3)]
    numpy: Annotated[list[Any], Field(min_length=2)]
    torch: Tensor
    cuda: list[Tensor]


class _Worker(_Part):
    random: _Random
    comm: dict[Any, Any]
    held: dict[Any, Any] = {}
    statistics: dict[StrictStr, Any] = {}


FileName = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]  # in its folder, not above it


class _Shards(_Part):
    folder: FileName
    files: dict[FileName, tuple[Count, Count]]
    tensors: dict[StrictStr, tuple[tuple[Count, ...], torch.dtype, Count]]


class _Checkpoint(_Part):
    format: StrictInt
    recipe: StrictStr
    model: dict[StrictStr, Any]
    optimizer: _OptimizerState
    progress: tuple[tuple[Count, Count], Count, Score, Seconds, dict[StrictStr, Any], StrictBool]
    workers: Annotated[list[_Worker], Field(min_length=1)]
    arithmetic: dict[StrictStr, StrictStr | StrictInt | None] | None = None
    num_threads: StrictInt | None = None
    shards: _Shards | None = None


class Misfit(ValueError):
    """A part of a checkpoint can't be right; says which, and why."""


def check_parts(state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose parts are not what `save_checkpoint` writes.

    Raises:
        Misfit: With the first part that is wrong.
    """
    try:
        _Checkpoint.model_validate(state)
    except ValidationError as error:
        raise Misfit(first_mistake(error)) from None
    for number, worker in enumerate(state["workers"]):
        try:
            _try_random_states(worker["random"])
        except Exception as error:  # Python, numpy and torch each refuse theirs in ways of their own
            raise Misfit(f"workers.{number}.random: {' '.join(str(error).split())[:100]}") from None


def check_clock(clock: Clock, recipe: Recipe) -> None:
    """Refuse a clock at which this recipe never stands.

    Raises:
        Misfit: If it is beyond the run's end, or between two updates.
    """
    rule, total = recipe.batch.rule, recipe.total_samples
    planned = rule is None and recipe.comm.kind != "parameter_server"
    wrong = planned and clock.samples != min(clock.updates * recipe.batch.global_batch, total)
    beyond = clock.samples > total and (rule is None or rule.kind != "adascale")  # whose end is counted in other samples
    if wrong or beyond or bool(clock.samples) != bool(clock.updates):
        raise Misfit(f"progress.0 = {clock.updates:,} updates and {clock.samples:,} samples: the recipe never stands there")


def check_weights_fit(saved: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse weights of another model.

    Raises:
        Misfit: With the first name that is missing, unknown, or of another shape or type, or holds values that are not finite.
    """
    own = model.state_dict()
    for name in own.keys() | saved.keys():
        if name not in saved or name not in own:
            raise Misfit(f"model: {'no' if name in own else 'unknown'} {name}")
    for name, there in saved.items():
        if isinstance(own[name], Tensor):
            _check_tensor(f"model.{name}", there, own[name])


def check_optimizer_fits(
    saved: Mapping[str, Any], optimizer: Optimizer, model_state: Mapping[str, Any], model: nn.Module, *, begun: bool
) -> None:
    """Refuse the state of another optimizer, or one that lacks what this optimizer had made of the parameters' gradients.

    The optimizer takes one step along zero gradients at a rate of zero, to see what state it makes: load weights and state afterwards.

    Args:
        saved: State of an optimizer.
        optimizer: Of the run.
        model_state: Weights that were saved with it.
        model: As it begins.
        begun: Whether an update was made before the state was saved.

    Raises:
        Misfit: With the first part that does not fit.
    """
    before = optimizer.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(before):
        raise Misfit(f"optimizer: has {len(saved['param_groups'])} groups, the recipe's has {len(before)}")
    for number, (there, own) in enumerate(zip(saved["param_groups"], before, strict=True)):
        _check_group(f"optimizer.param_groups.{number}", there, own, begun=begun)
    names = {id(p): name for name, p in model.named_parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    initial = {name: _whole(p).detach().clone() for name, p in model.named_parameters()} if len(saved["state"]) < len(params) else {}
    made = _state_after_a_step(optimizer)
    for number in saved["state"]:
        if number not in made:
            raise Misfit(f"optimizer.state.{number}: there is no such parameter")
    for number, own in made.items():
        there = saved["state"].get(number)
        if there is None:
            name = names[id(params[number])]
            if own and not torch.equal(_whole(model_state[name]).to(initial[name].device), initial[name]):
                raise Misfit(f"optimizer.state.{number}: is missing, though {name} was trained")
            continue
        for name in sorted(own.keys() | there.keys()):
            if name not in there or name not in own:
                raise Misfit(f"optimizer.state.{number}: {'no' if name in own else 'unknown'} {name}")
            if isinstance(own[name], Tensor):
                _check_tensor(f"optimizer.state.{number}.{name}", there[name], own[name])
            elif not _alike(there[name], own[name]):
                raise Misfit(f"optimizer.state.{number}.{name} = {there[name]!r:.60}: must be like {own[name]!r:.60}")


def _check_group(name: str, saved: Mapping[str, Any], own: Mapping[str, Any], *, begun: bool) -> None:
    """Refuse settings that are not the recipe's; another version of torch may have flags more or fewer."""
    for key in own.keys() | saved.keys() | ({"initial_lr"} if begun else set()):
        flag = key != "initial_lr" and isinstance(own.get(key, saved.get(key)), bool | None)
        wanted = own["lr"] if key == "initial_lr" else own.get(key)  # the peak rate; `lr` itself is set before each step
        if key not in saved or (key not in own and key != "initial_lr"):
            if not flag:
                raise Misfit(f"{name}: {'unknown' if key in saved else 'no'} {key}")
        elif key == "lr" and not (_is_number(saved[key]) or isinstance(saved[key], Tensor)):
            raise Misfit(f"{name}.lr = {saved[key]!r:.60}: must be a number")
        elif key != "lr" and not _same(saved[key], wanted):
            raise Misfit(f"{name}.{key} = {saved[key]!r:.60}: the recipe's is {wanted!r:.60}")


def check_begun(state: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Refuse what sets the batch of a run under way without a part that this recipe has; noise may be measured from now on only.

    Raises:
        Misfit: With the part that is missing.
    """
    for name in fresh:
        if name not in state and (name != "monitor" or "rule" in fresh):
            raise Misfit(f"progress.4: no {name}")


def check_identical(name: str, saved: Any, fresh: Any) -> None:
    """Refuse values of other kinds than those of a run that begins; what it has none of yet is not compared.

    A list that is empty there fills with entries that are alike: numbers, tensors, lists or dictionaries.

    Raises:
        Misfit: With the first value of another kind.
    """
    if fresh is None or saved is None:
        return
    if not _alike(saved, fresh):
        raise Misfit(f"{name} = {saved!r:.60}: must be like {fresh!r:.60}")
    if isinstance(fresh, Mapping):
        for key in fresh.keys() & saved.keys():
            check_identical(f"{name}.{key}", saved[key], fresh[key])
    elif isinstance(fresh, list | tuple):
        if fresh and all(map(_is_number, fresh)) and len(saved) != len(fresh):
            raise Misfit(f"{name}: has {len(saved)} values, must have {len(fresh)}")
        for i, value in enumerate(saved):
            plain = _is_number(value) or isinstance(value, list | tuple | Mapping | Tensor)
            if not plain and not (fresh and isinstance(value, str)):
                raise Misfit(f"{name}.{i} = {value!r:.60}: must be a number, a tensor or a list")
            like = fresh[i] if len(fresh) == len(saved) else saved[0]
            check_identical(f"{name}.{i}", value, like)


def _state_after_a_step(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0 * group["lr"]
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    made: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return made


def _check_tensor(name: str, saved: Any, own: Tensor) -> None:
    if not isinstance(saved, Tensor):
        raise Misfit(f"{name} = {saved!r:.60}: must be a tensor")
    if saved.layout != torch.strided or saved.shape != own.shape or saved.is_floating_point() != own.is_floating_point():
        raise Misfit(f"{name}: is {_words(saved)}, must be {_words(own)}")
    values = saved.to_local() if isinstance(saved, DTensor) else saved
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise Misfit(f"{name}: holds values that are not finite")


def _words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _same(saved: Any, own: Any) -> bool:
    if isinstance(own, Tensor) or isinstance(saved, Tensor):
        return isinstance(own, Tensor) and isinstance(saved, Tensor) and torch.equal(saved.cpu(), own.cpu())
    if isinstance(own, list | tuple) and isinstance(saved, list | tuple):
        return list(saved) == list(own)
    return bool(type(saved) is type(own) and saved == own) or (_is_number(saved) and _is_number(own) and bool(saved == own))


def _alike(saved: Any, fresh: Any) -> bool:
    """Whether two values are of one kind: a float may be written as a whole number, a list as a tuple."""
    if isinstance(fresh, bool) or isinstance(saved, bool):
        return isinstance(fresh, bool) and isinstance(saved, bool)
    if isinstance(fresh, float):
        return _is_number(saved)
    if isinstance(fresh, list | tuple):
        return isinstance(saved, list | tuple)
    return next((isinstance(saved, kind) for kind in (int, str, Mapping, Tensor) if isinstance(fresh, kind)), True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _try_random_states(states: Mapping[str, Any]) -> None:
    """Set random states where nobody draws from them."""
    version, keys, gauss = states["python"]
    random.Random().setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    if numbers.dtype != torch.int64 or not 0 <= int(numbers.min()) <= int(numbers.max()) < 2**32:
        raise Misfit("numpy's numbers must have 32 bits")
    np.random.RandomState().set_state((kind, numbers.cpu().numpy().astype(np.uint32), *rest))
    torch.Generator().set_state(states["torch"].cpu())
    for each in states["cuda"]:
        if each.dtype != torch.uint8:
            raise Misfit("a GPU's must be bytes")
