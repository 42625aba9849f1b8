"""When a run is saved is chance: a clock decides, or a person. Its numbers must not depend on it: not those of batch norm either."""

import json
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Recipe
from bigbatch.tasks import Splits
from bigbatch.tasks.classification import Classification
from bigbatch.train.state.checkpoint import read_checkpoint

SCRIPT = Path(__file__).with_name("train.py")


class Normalised(Classification):
    """Ten clusters, and two batch norms."""

    name = "normalised"

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        y = torch.randint(10, (672,), generator=chance)
        x = torch.randn(10, 12, generator=chance)[y] + 0.5 * torch.randn(672, 12, generator=chance)
        return Splits(*(TensorDataset(x[part], y[part]) for part in torch.arange(672).split([512, 80, 80])))

    def model(self):
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))


RECIPE = Recipe.from_dict(
    {
        "task": "tests.distributed.test_saves:Normalised",
        "num_train_samples": 512,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "batch": {"global_batch": 48, "micro_batch": 12, "ghost_batch": 12},
        "budget": {"samples": 48 * 20},
    }
)
COMM = {
    "all_reduce": {},
    "local_sgd": {"period": 3},
    "gossip": {},
    "fully_shard": {},
}


def run(folder, world, *jobs):
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(SCRIPT, world, folder, folder / "jobs.json")


def job(kind, out, **options):
    recipe = RECIPE.replace({"comm": {"kind": kind, **COMM[kind]}})
    return {"task": RECIPE.task, "recipe": recipe.to_toml(), "out": str(out), "options": {"evaluate_every": 0.4, **options}}


@pytest.mark.parametrize(("kind", "world"), [*((kind, 2) for kind in COMM), ("all_reduce", 3)])
def test_saving_changes_no_bit(tmp_path, kind, world):
    run(
        tmp_path / "runs",
        world,
        job(kind, tmp_path / "seldom", save_every_s=1e6),
        job(kind, tmp_path / "often", save_every_s=0.0),
        job(kind, tmp_path / "stopped", save_every_s=1e6, stop_after=7),
        job(kind, tmp_path / "stopped", save_every_s=1e6, resume=True),
    )
    seldom, often, stopped = (
        read_checkpoint(tmp_path / name / "last.pt", torch.device("cpu"))["model"] for name in ("seldom", "often", "stopped")
    )
    for name, value in seldom.items():
        assert torch.equal(value, often[name]), name
        assert torch.equal(value, stopped[name]), name


def test_another_number_of_workers_takes_up_the_statistics(tmp_path):
    """Saved by three, resumed by two: the parts of three are one whole, which goes on."""
    run(tmp_path / "three", 3, job("all_reduce", tmp_path / "run", stop_after=7), job("all_reduce", tmp_path / "whole"))
    run(tmp_path / "two", 2, job("all_reduce", tmp_path / "run", resume=True))
    resumed, whole = (read_checkpoint(tmp_path / name / "last.pt", torch.device("cpu"))["model"] for name in ("run", "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5)
