"""Weights as safetensors: read without bigbatch, equal bits and equal outputs."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S
from torch import nn

from bigbatch import Recipe, fit
from bigbatch.core.checks import CheckpointError, OutputError, UserError
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.state.export import export_weights, untied

SHORT = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 50, "batch.micro_batch": 16, "batch.ghost_batch": 16})


class Tied(nn.Module):
    """Two layers that share their weight, and batch norm with its buffers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.second(torch.relu(self.norm(self.first(x.flatten(1))))))


class TiedDigits(DigitsMLP):
    name = "digits/tied"

    def model(self):
        return Tied()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(TiedDigits(), SHORT, out=folder, quiet=True, tensorboard=False, keep_checkpoints=True)
    return folder


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize(("checkpoint", "file"), [("last", "last.pt"), ("best", "best.pt"), ("update-41", "update-000000041.pt")])
def test_equal_bits_and_what_they_are(run, tmp_path, checkpoint, file):
    done = export_weights(run, tmp_path / "w.safetensors", checkpoint=checkpoint)
    assert done.checkpoint == run / file
    mine, theirs = load_file(tmp_path / "w.safetensors"), weights(run / file)
    assert set(mine) == set(theirs) - {"second.weight"}
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name])
    with safe_open(tmp_path / "w.safetensors", "pt") as opened:
        facts = opened.metadata()
    assert facts["second.weight"] == "first.weight"
    assert (facts["format"], facts["task"], facts["checkpoint"]) == ("pt", "digits/tied", file.removesuffix(".pt"))
    assert Recipe.from_toml(facts["recipe"]) == SHORT
    clock = torch.load(run / file, weights_only=True)["progress"][0]
    assert [int(facts["samples"]), int(facts["updates"])] == list(clock)


def test_the_bare_model_computes_the_same(run, tmp_path):
    export_weights(run / "last.pt", tmp_path / "w.safetensors")
    trained, bare = Tied().eval(), Tied().eval()
    trained.load_state_dict(weights(run / "last.pt"))
    load_model(bare, tmp_path / "w.safetensors")
    x = torch.randn(5, 8, 8)
    assert torch.equal(bare(x), trained(x))
    assert bare.second.weight is bare.first.weight


ALONE = """
import json, sys
import torch
from safetensors.torch import load_file
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
model.load_state_dict(load_file(sys.argv[1]))
assert not any(name.startswith("bigbatch") for name in sys.modules)
torch.set_num_threads(1)
print(json.dumps(model(torch.linspace(-1, 1, 128).reshape(2, 8, 8)).tolist()))
"""


def test_the_command_and_a_program_without_bigbatch(tmp_path):
    recipe = SHORT.replace({"batch.ghost_batch": None, "budget.updates": 5})
    fit("digits/mlp", recipe, out=tmp_path / "run", quiet=True, tensorboard=False)
    command = ["export", tmp_path / "run", tmp_path / "weights.safetensors"]
    assert bigbatch(*command).stdout.startswith(f"wrote {tmp_path / 'weights.safetensors'}: 4 tensors, ")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(command[2])], capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    model = DigitsMLP().model()
    model.load_state_dict(weights(tmp_path / "run" / "last.pt"))
    assert torch.equal(torch.tensor(json.loads(done.stdout)), model(torch.linspace(-1, 1, 128).reshape(2, 8, 8)))
    again = bigbatch(*command, expect=2)
    assert again.stderr == f"error: {command[2]}: exists; replace it with --force, or choose another name\n"
    bigbatch(*command, "--force", "--checkpoint", "best")


def test_mistakes(run, tmp_path):
    file = tmp_path / "w.safetensors"
    with pytest.raises(
        UserError, match=r"unknown checkpoint 'update-40': did you mean 'update-50'\? known: update-41, update-50, best, last"
    ):
        export_weights(run, file, checkpoint="update-40")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export_weights(tmp_path, file)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        export_weights(tmp_path / "last.pt", file)
    with pytest.raises(OutputError, match=r"can't write .*missing/w.safetensors"):
        export_weights(run, tmp_path / "missing" / "w.safetensors")
    assert not file.exists()
    with pytest.raises(UserError, match="counter of the model's state is no tensor but int: safetensors can't hold it; save it apart"):
        untied({"counter": 3})


def test_views_of_one_memory_are_written_apart(tmp_path):
    """Overlapping, transposed, channels-last, bfloat16, integers; empty ones are not the same for being nowhere."""
    base = torch.arange(24.0)
    state = {"whole": base, "part": base[4:8], "rows": base.reshape(4, 6), "columns": base.reshape(4, 6).T, "same": base.reshape(4, 6)}
    state |= {"image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "none": torch.empty(0), "nil": torch.empty(0)}
    state |= {"half": torch.randn(3, 2).bfloat16(), "count": torch.tensor(3), "mask": torch.tensor([True, False])}
    tensors, same_as = untied(state)
    assert same_as == {"same": "rows"}
    save_file(tensors, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == state.keys() - {"same"}
    assert all(found[name].dtype == state[name].dtype and torch.equal(found[name], state[name]) for name in found)
