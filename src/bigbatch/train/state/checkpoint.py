"""Checkpoints: written whole or not at all, loaded without running code, refused when they belong to another run."""

import io
import random
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.optim import Optimizer

from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks, is_lost_worker_error
from bigbatch.core.checks import CheckpointError, Elsewhere, LostWorkers
from bigbatch.core.clock import Clock
from bigbatch.core.hardware.arithmetic import arithmetic, differences
from bigbatch.core.hardware.devices import random_states, restore_random_state
from bigbatch.core.storage.writing import write_atomically
from bigbatch.recipe import Recipe
from bigbatch.train.state.checkpoint_checks import (
    check_begun,
    check_clock,
    check_identical,
    check_optimizer_fits,
    check_parts,
    check_weights_fit,
)
from bigbatch.train.state.sharded_checkpoint import SHARDS, put_in_shards, remove_shards, save_shards, take_out_shards

FORMAT = 2
SHARDED = 3
"""Format of a checkpoint whose weights are spread over files of several workers; see `bigbatch.train.state.sharded_checkpoint`."""
KEPT = "update-{:09}.pt"
"""Name of a checkpoint that is kept, by its updates."""


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Progress(NamedTuple):
    """What a run knows besides weights and random states."""

    clock: Clock = Clock()
    micro_batch: int = 0  # the size chosen at the start: another one would round differently
    best_score: float = float("-inf")  # validation; minus infinity, also where lower is better: none yet
    train_s: float = 0.0  # seconds in updates so far, over all sessions of the run
    batch: dict[str, Any] = {}  # noqa: RUF012 state of what sets the batch
    reached: bool = False  # whether the run's target was reached, which ends it


class HasState(Protocol):
    """What each worker has of its own: adversarial examples for updates to come, its part of running statistics."""

    def state_dict(self) -> dict[str, Any]:
        """Of this worker alone."""
        ...

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Take up the states of the workers that saved, of which there may have been more or fewer."""
        ...


def save_checkpoint(
    path: Path | None, *, recipe: Recipe, comm: Comm, optimizer: Optimizer, progress: Progress, per_worker: Mapping[str, HasState] = NOTHING
) -> None:
    """Write everything that a run needs to go on as if it had never stopped. Called by every worker, written by the first.

    A model that is spread over workers is written in the background, each worker its own part: see `all_saved`.

    Args:
        path: None on the workers that write nothing.
        recipe: Of the run.
        comm: Knows the model, and what each worker alone knows.
        optimizer: Of the run.
        progress: Where it stands.
        per_worker: What each worker has of its own, by name.

    Raises:
        OutputError: On every worker, if it can't be written, or an earlier one could not be in the background; an earlier checkpoint of
            that name survives.
    """
    ranks, writer = comm.ranks, comm.writer if isinstance(comm, FullyShard) else None
    if writer is not None:
        writer.wait()
    worker = {
        "random": _random_states(ranks.device),
        "comm": comm.state_dict(),
        **{name: part.state_dict() for name, part in per_worker.items()},
    }
    workers = [_from_bytes(data) for data in ranks.all_gather(_to_bytes(worker))]
    if writer is None:
        model_state, optimizer_state = comm.full_state_dicts(optimizer)
    else:
        model_state, optimizer_state, shards = take_out_shards(comm.model.state_dict(), optimizer.state_dict())
    state = {
        "format": FORMAT,
        "recipe": recipe.to_toml(),
        "model": model_state,
        "optimizer": optimizer_state,
        "progress": [tuple(progress.clock), *progress[1:]],
        "workers": workers,
        "arithmetic": arithmetic(ranks.device),
    }
    if writer is None:
        ranks.run_on_all_ranks(lambda: _write(path, state))
    else:
        state = _from_bytes(_to_bytes(state))  # a copy: training goes on
        save_shards(path, shards, lambda found: _write(path, {**state, "format": SHARDED, "shards": found}), writer=writer)


def _write(path: Path | None, state: dict[str, Any]) -> None:
    """Put a checkpoint in the place of an earlier one, whose shards nothing names then."""
    if path is None:
        return
    write_atomically(path, _to_bytes(state))
    remove_shards(path, but=state.get("shards", {}).get("folder"))


def numbered_name(clock: Clock) -> str:
    """Name of a checkpoint that stays where it is while the run goes on."""
    return KEPT.format(clock.updates)


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints that were kept in a run's folder, by their updates, in order."""
    found = {path.stem.partition("-")[2]: path for path in sorted(folder.glob(KEPT.format(0).replace("0" * 9, "*")))}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder: those that were kept, in order, then the best by validation, then the last."""
    kept = numbered_checkpoints(folder).values()
    return [*kept, *(path for name in ("best.pt", "last.pt") if (path := folder / name).exists())]


def load_checkpoint(
    path: Path, *, recipe: Recipe, comm: Comm, optimizer: Optimizer, per_worker: Mapping[str, HasState] = NOTHING
) -> Progress:
    """Restore weights, optimizer and random states in place. Called by every worker, read by the first.

    Another number of workers than the run had goes on with the same samples in the same updates; only what each worker draws for itself
    (dropout) then differs. Other arithmetic than the run had (see `bigbatch.core.hardware.arithmetic`), such as another GPU's, gets a
    warning.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or from a run with another recipe (the differing fields
            are named).
    """
    ranks = comm.ranks
    state = _from_bytes(
        ranks.broadcast_from_rank_0(ranks.run_on_all_ranks(lambda: _read_bytes(path) if ranks.is_rank_0 else None)), ranks.device
    )
    with _fits(path):
        put_in_shards(path, state, ranks, mesh=comm.mesh if isinstance(comm, FullyShard) else None)

    def take_up() -> Progress:
        with _fits(path):
            differing = recipe.differences(Recipe.from_saved(state["recipe"]))
            if differing:
                raise CheckpointError(
                    f"checkpoint {path}: belongs to another recipe ({'; '.join(differing)}); use the recipe of the run or another --out"
                )
            clock, *rest = state["progress"]
            check_clock(Clock(*clock), recipe)
            check_weights_fit(state["model"], comm.model)
            check_optimizer_fits(state["optimizer"], optimizer, state["model"], comm.model, begun=clock[1] > 0)
            for number, worker in enumerate(state["workers"]):
                check_identical(f"workers.{number}.comm", worker["comm"], comm.state_dict())
            comm.load_state_dicts([worker["comm"] for worker in state["workers"]])
            comm.load_full_state_dicts(optimizer, state["model"], state["optimizer"])
            for name, part in per_worker.items():
                part.load_state_dicts([worker.get(name, {}) for worker in state["workers"]])
            if ranks.rank < len(state["workers"]):
                _restore_random_states(state["workers"][ranks.rank]["random"], ranks.device)
            if ranks.is_rank_0:
                _warn_of_other_arithmetic(path, state, ranks.device)
            return Progress(Clock(*clock), *rest)

    return ranks.run_on_all_ranks(take_up)


def load_batch_state(path: str | Path | None, owner: Any, state: Mapping[str, Any], clock: Clock) -> None:
    """Give what sets the batch, or shares out its work, the state that a checkpoint has of it; an empty one is a run's beginning.

    Raises:
        CheckpointError: If it does not fit.
    """
    with _fits(path):
        fresh = owner.state_dict()
        if clock.updates:
            check_begun(state, fresh)
        check_identical("progress.4", state, fresh)
        owner.load_state_dict(state)


@contextmanager
def _fits(path: str | Path | None) -> Iterator[None]:
    """Turn whatever a wrong value leads to while it is taken up into one error."""
    try:
        yield
    except (CheckpointError, Elsewhere, LostWorkers, Warning):  # a warning where Python makes them errors (-W error)
        raise
    except Exception as error:  # torch, numpy and Python each refuse theirs in ways of their own
        if is_lost_worker_error(error):
            raise
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"checkpoint {path}: does not fit this version of the model ({' '.join(what.split())}); start again in another --out"
        ) from error


def _warn_of_other_arithmetic(path: Path, state: Mapping[str, Any], device: torch.device) -> None:
    """Say what keeps the run from continuing bit for bit, if anything."""
    here = arithmetic(device)
    there = state.get("arithmetic") or {**here, "num_threads": state["num_threads"]}  # of an earlier version: threads alone
    there = {"denormals": "kept", **there}  # as earlier versions did
    if changed := differences(here, there):
        text = f"checkpoint {path}: continues to rounding, not bit for bit ({'; '.join(changed)}); for equal bits, resume with the same"
        warnings.warn(text, stacklevel=3)


def read_checkpoint(path: Path, device: torch.device, *, model_only: bool = False) -> dict[str, Any]:
    """The raw content of a checkpoint, loaded with `weights_only=True`; weights that are spread over files are put together.

    Args:
        path: Of the checkpoint.
        device: For its tensors.
        model_only: Whether what the optimizer knows may be left out.

    Raises:
        CheckpointError: If the file, or one of its shards, is missing, damaged or of another format.
    """
    state: dict[str, Any] = _from_bytes(_read_bytes(path), device)
    put_in_shards(path, state, Ranks(device=device), model_only=model_only)
    return state


def remove_leftover_shards(folder: Path) -> None:
    """Delete shards that no checkpoint names: of one that a killed run had not finished, or had just replaced."""
    for shards in (folder / SHARDS).glob("*"):
        path = folder / f"{shards.stem}.pt"
        with suppress(CheckpointError):  # a damaged one may yet be mended
            named = _from_bytes(_read_bytes(path)).get("shards", {}).get("folder") if path.exists() else None
            remove_shards(path, but=named)


def _read_bytes(path: Path) -> bytes:
    """The file, once it is known to be whole and ours."""
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch.load does not check the checksums that torch.save writes
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = _from_bytes(data)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: does not exist; start the run without --resume") from None
    except Exception as error:  # zipfile, pickle and torch raise a dozen unrelated kinds
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise CheckpointError(f"checkpoint {path}: is truncated or damaged ({why}); resume from a copy or start a new run") from error
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, SHARDED):
        raise CheckpointError(
            f"checkpoint {path}: is not a bigbatch checkpoint of format {FORMAT} or {SHARDED}; start again in another --out"
        )
    with _fits(path):
        check_parts(state)
    return data


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _from_bytes(data: bytes, device: torch.device | str = "cpu") -> Any:
    return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


def _random_states(device: torch.device) -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    kind, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(numbers, np.uint32).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": random_states(device),
    }


def _restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    restore_random_state(device, states["cuda"])
