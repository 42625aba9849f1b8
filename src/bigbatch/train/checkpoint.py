"""Checkpoints: written whole or not at all, loaded without running code, refused when they belong to another run."""

import io
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.core.checks import CheckpointError, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.core.files import write_atomically
from bigbatch.recipe import Recipe

FORMAT = 1


class Progress(NamedTuple):
    """What a run knows besides weights and random states."""

    clock: Clock = Clock()
    micro_batch: int = 0  # the size chosen at the start: another one would round differently
    best_score: float = float("-inf")  # validation
    train_s: float = 0.0  # seconds in updates so far, over all sessions of the run


def save_checkpoint(path: Path, *, recipe: Recipe, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write everything that a run needs to go on as if it had never stopped.

    Raises:
        OutputError: If it can't be written; an earlier checkpoint of that name survives.
    """
    state = {
        "format": FORMAT,
        "recipe": recipe.to_toml(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": [tuple(progress.clock), *progress[1:]],
        "random": _random_states(),
        "num_threads": torch.get_num_threads(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, recipe: Recipe, model: nn.Module, optimizer: Optimizer, device: torch.device) -> Progress:
    """Restore weights, optimizer and random states in place.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or from a run with another recipe (the differing fields
            are named).
    """
    state = read_checkpoint(path, device)
    try:
        differing = recipe.differences(Recipe.from_toml(state["recipe"]))
        if differing:
            raise CheckpointError(
                f"checkpoint {path}: belongs to another recipe ({'; '.join(differing)}); use the recipe of the run or another --out"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        _restore_random_states(state["random"])
        if state["num_threads"] != torch.get_num_threads():
            warnings.warn(
                f"the run had {state['num_threads']} threads and goes on with {torch.get_num_threads()}: sums may round differently",
                stacklevel=2,
            )
        clock, *rest = state["progress"]
        return Progress(Clock(*clock), *rest)
    except (KeyError, TypeError, RuntimeError, RecipeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: does not fit this version of the model ({' '.join(str(error).split())}); start again in another --out"
        ) from error


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """The raw content of a checkpoint, loaded with `weights_only=True`.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the checksums that torch.save writes
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: does not exist; start the run without --resume") from None
    except Exception as error:  # zipfile, pickle and torch raise a dozen unrelated kinds
        why = f"{type(error).__name__}: {str(error)[:100]}"
        raise CheckpointError(f"checkpoint {path}: is truncated or damaged ({why}); resume from a copy or start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path}: is not a bigbatch checkpoint of format {FORMAT}; start again in another --out")
    return state


def _random_states() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    kind, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(numbers, np.uint32).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, numbers.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
