"""A trained model's weights as safetensors: one file that any program reads, without bigbatch."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from bigbatch.core.checks import CheckpointError, OutputError, UserError, unknown
from bigbatch.core.clock import Clock
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.version import __version__
from bigbatch.recipe import Recipe
from bigbatch.train.state.checkpoint import checkpoints_of, read_checkpoint
from bigbatch.train.state.record_lines import read_record


class Exported(NamedTuple):
    """What was written."""

    checkpoint: Path  # whose weights they are
    num_tensors: int
    num_bytes: int  # of the file
    clock: Clock


def export_weights(run: str | Path, file: str | Path, *, checkpoint: str = "last", replace: bool = False) -> Exported:
    """Write the weights of a run's model, with its buffers, as `safetensors.torch.load_file` reads them.

    Names are those of the model's `state_dict()`: `load_state_dict` of the task's own model takes them. Of tied parameters the first is
    written; the file's metadata has each other name, with the one that was written, and `safetensors.torch.load_model` ties them again.
    The metadata also says what the weights are: `task`, `recipe` (TOML), `updates`, `samples`, `checkpoint`, and `version` of bigbatch.

    Args:
        run: The folder of a run, or a checkpoint in it.
        file: To be written.
        checkpoint: Of the folder: "last", "best" (by validation), or "update-N" of those that were kept.
        replace: Whether `file` may exist.

    Raises:
        UserError: If there is no such checkpoint, it is damaged, holds what is no tensor, or `file` can't be written or exists.
    """
    run, file = Path(run), Path(file)
    if file.exists() and not replace:
        raise OutputError(f"{file}: exists; replace it with --force, or choose another name")
    path = _find(run, checkpoint)
    state = read_checkpoint(path, torch.device("cpu"), model_only=True)
    recipe = Recipe.from_saved(state["recipe"])
    clock = Clock(*state["progress"][0])
    tensors, same_as = untied(state["model"])
    facts = {
        "format": "pt",
        "task": next((line["task"] for line in _record(path.parent) if line["kind"] == "start"), recipe.task),
        "recipe": state["recipe"],
        "updates": str(clock.updates),
        "samples": str(clock.samples),
        "checkpoint": path.stem,
        "version": __version__,
    }
    data = save(tensors, metadata={**same_as, **facts})
    write_atomically(file, data)
    return Exported(path, len(tensors), len(data), clock)


def untied(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What safetensors can hold of a state dict: each tensor once, contiguous, in memory of its own.

    Returns:
        The tensors, and for each name that is left out the one that is the same tensor.

    Raises:
        UserError: If the state holds what is no tensor.

    >>> weight = torch.zeros(2, 2)
    >>> tensors, same_as = untied({"embedding": weight, "head": weight, "transposed": weight.T})
    >>> list(tensors), same_as
    (['embedding', 'transposed'], {'head': 'embedding'})
    """
    tensors: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name} of the model's state is no tensor but {type(value).__name__}: safetensors can't hold it; save it apart"
            )
        view = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and view in seen:
            same_as[name] = seen[view]
            continue
        seen[view] = name
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return tensors, same_as


def _record(folder: Path) -> list[dict[str, Any]]:
    path = folder / "record.jsonl"
    return read_record(path) if path.exists() else []


def _find(run: Path, checkpoint: str) -> Path:
    """The checkpoint's file."""
    if run.is_file():
        return run
    found = {_short(path): path for path in checkpoints_of(run)}
    if not found:
        raise CheckpointError(f"{run}: holds no checkpoint (last.pt, best.pt, update-*.pt); name the --out folder of `bigbatch train`")
    if checkpoint not in found:
        raise UserError(f"{run}: " + unknown("checkpoint", checkpoint, found))
    return found[checkpoint]


def _short(path: Path) -> str:
    """As one types it: `update-30` of `update-000000030.pt`."""
    kind, dash, updates = path.stem.partition("-")
    return f"{kind}-{int(updates)}" if dash else kind
