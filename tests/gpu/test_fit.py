"""`fit` on the GPU: precision, compilation, feeding, memory, resuming, a second stream, and NCCL."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import structured_tasks
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bigbatch import Recipe, fit
from bigbatch.tasks import Splits
from bigbatch.tasks.classification import Classification
from bigbatch.train.data.loader import load_micro_batches

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
DRY = os.environ.get("GPU_TESTS_ON") == "cpu"
ROOT = Path(__file__).resolve().parents[2]
QUIET = {"quiet": True, "tensorboard": False}
RATES = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "adam": {"lr": 1e-3},
    "adamw": {"lr": 1e-3},
    "lars": {"lr": 1.0},
    "lamb": {"lr": 1e-2},
    "adamp": {"lr": 1e-3},
    "sgdp": {"lr": 0.1, "momentum": 0.9},
    "muon": {"lr": 0.02, "adam_lr": 1e-3},
    "soap_muon": {"lr": 0.02, "adam_lr": 1e-3},
}
RECIPE = Recipe.from_dict(
    {
        "task": "clusters",
        "num_train_samples": 1024,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"warmup": {"kind": "gradual", "epochs": 1}, "decay": {"kind": "cosine"}},
        "batch": {"global_batch": 64, "micro_batch": 64, "ghost_batch": 32},
        "budget": {"epochs": 3.0},
    }
)


class Clusters(Classification):
    """Ten clusters of images, easily told apart."""

    name = "clusters"

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        centres = torch.randn(10, 1, 8, 8, generator=chance)
        y = torch.randint(10, (1536,), generator=chance)
        x = centres[y] + 0.5 * torch.randn(1536, 1, 8, 8, generator=chance)
        x = (x - x.min()) / (x.max() - x.min())
        return Splits(*(TensorDataset(x[part], y[part]) for part in torch.arange(1536).split([1024, 256, 256])))

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def weights(folder):
    return torch.load(folder / "last.pt", map_location="cpu", weights_only=True)["model"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns(precision, device):
    result = fit(Clusters(), RECIPE.replace({"precision": precision}), device=device, **QUIET)
    assert result.test_score > 0.95


def test_learns_digits_under_autocast(device):
    recipe = Recipe.named("digits/mlp").replace({"precision": "bfloat16", "budget.epochs": 5, "batch.micro_batch": 32})
    assert fit("digits/mlp", recipe, device=device, **QUIET).test_score > 0.9


def test_ends_near_the_weights_of_the_cpu(device, tmp_path):
    recipe = RECIPE.replace({"precision": "float64", "budget.epochs": 1.0})
    for name, place in (("cpu", "cpu"), ("gpu", device)):
        fit(Clusters(), recipe, out=tmp_path / name, device=place, **QUIET)
    here, there = weights(tmp_path / "cpu"), weights(tmp_path / "gpu")
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["lars"] if DRY else list(RATES))
def test_resumes_bit_for_bit(name, device, tmp_path):
    recipe = RECIPE.replace({"optimizer": {"name": name, **RATES[name]}, "budget.epochs": 2.0})
    fit(Clusters(), recipe, out=tmp_path / "whole", device=device, keep_checkpoints=True, evaluate_every=0.5, **QUIET)
    fit(Clusters(), recipe, out=tmp_path / "resumed", device=device, keep_checkpoints=True, evaluate_every=0.5, **QUIET)
    (tmp_path / "resumed" / "update-000000016.pt").replace(tmp_path / "resumed" / "last.pt")
    (tmp_path / "resumed" / "result.json").unlink()
    fit(Clusters(), recipe, out=tmp_path / "resumed", device=device, resume=True, evaluate_every=0.5, **QUIET)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_measures_noise_without_changing_weights(device, tmp_path):
    recipe = RECIPE.replace({"batch.ghost_batch": 16, "batch.micro_batch": 16, "budget.epochs": 1.0})
    for measured in (False, True):
        fit(Clusters(), recipe, out=tmp_path / str(measured), device=device, measure_noise=measured, **QUIET)
    plain, seen = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert all(torch.equal(value, seen[key]) for key, value in plain.items())


def test_a_second_stream_makes_the_examples_that_the_trainer_makes(cuda, tmp_path):
    recipe = RECIPE.replace({"adversarial": {"eps": 0.02}, "budget.epochs": 1.0})
    for makers in ("self", "stream"):
        fit(Clusters(), recipe.replace({"adversarial.makers": makers}), out=tmp_path / makers, device=cuda, **QUIET)
    alone, beside = weights(tmp_path / "self"), weights(tmp_path / "stream")
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], value, rtol=1e-4, atol=1e-5)


class Squares(Dataset):
    """A data set that is not in memory."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.full((3,), float(i)), i


def test_feeds_what_is_not_in_memory(device):
    batches = [torch.tensor([5, 3]), torch.tensor([1, 2])]
    fed = [(x.clone(), y.clone()) for x, y in load_micro_batches(Squares(), batches, device=device, dtype=torch.float32)]
    assert [y.tolist() for _, y in fed] == [[5, 3], [1, 2]]
    assert all(x.device.type == device.type and x[:, 0].tolist() == y.tolist() for x, y in fed)


def test_feeds_dicts_of_ragged_sequences(device, tmp_path):
    """Weighted by their tokens, in micro-batches, in float64: the weights are the CPU's."""
    recipe = structured_tasks.RECIPE.replace({"batch.micro_batch": 5})
    for place, on in {"there": device, "here": "cpu"}.items():
        fit(structured_tasks.Words(), recipe, out=tmp_path / place, device=on, **QUIET)
    there, here = weights(tmp_path / "there"), weights(tmp_path / "here")
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-9, atol=1e-11)


def test_takes_no_more_memory_than_a_bare_loop(cuda):
    task, recipe = Clusters(), RECIPE.replace({"batch.global_batch": 1024, "batch.micro_batch": 1024, "budget.epochs": 4.0})
    torch.ones(8, 8, device=cuda).mm(torch.ones(8, 8, device=cuda))  # cuBLAS takes its workspace, 32 MiB, at its first product
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fit(task, recipe, device=cuda, **QUIET)
    of_fit = torch.cuda.max_memory_allocated() - before
    x, y = (t.to(cuda) for t in task.splits().train.tensors)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = task.model().to(cuda)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    bare = torch.cuda.max_memory_allocated() - before + x.nbytes + y.nbytes
    assert of_fit < 1.5 * bare + 16 * 2**20  # the batch's copy, and what libraries keep for themselves


def test_trains_compiled(cuda, tmp_path):
    if importlib.util.find_spec("triton") is None or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("torch.compile needs triton and a C compiler")
    recipe = RECIPE.replace({"budget.epochs": 1.0})
    for compiled in (False, True):
        fit(Clusters(), recipe, out=tmp_path / str(compiled), device=cuda, compile=compiled, **QUIET)
    plain, fused = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="no typer, which the command line needs")
def test_trains_under_torchrun(cuda, tmp_path):
    """One process: torchrun's rendezvous and environment, on the GPU."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "bigbatch"]
    command += ["train", "digits/mlp", "--set", "budget.epochs=1", "--out", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
    assert (tmp_path / "run" / "result.json").exists()


ONE_PROCESS = """
import os, torch, torch.distributed as dist
gpu = os.environ["ON"] == "cuda"
device = torch.device("cuda", 0) if gpu else torch.device("cpu")
meet = "tcp://127.0.0.1:" + os.environ["PORT"]
if gpu:
    torch.cuda.set_device(0)
dist.init_process_group("nccl" if gpu else "gloo", rank=0, world_size=1, init_method=meet, device_id=device if gpu else None)
from tests.gpu.test_fit import Clusters, RECIPE
from torch.nn.parallel import DistributedDataParallel
from bigbatch.comm.ranks import Ranks
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.optim import Muon
ranks = Ranks(0, 1, device)
model = Clusters().model().to(device)
spread = DistributedDataParallel(model, device_ids=[0] if gpu else None)
monitor = NoiseScaleMonitor(model)
optimizer = Muon([{"params": [p], "orthogonalise": p.ndim > 1} for p in model.parameters()], process_group=dist.group.WORLD)
x, y = (t[:64].to(device) for t in Clusters().splits().train.tensors)
for _ in range(3):
    for a, b in zip(x.chunk(2), y.chunk(2)):
        (torch.nn.functional.cross_entropy(spread(a), b) / 2).backward()
        monitor.micro_batch(len(a), divisor=64)
    monitor.update()
    optimizer.step()
    optimizer.zero_grad()
assert len(monitor.flush()) == 3
assert ranks.all_gather(b"here") == [b"here"]
dist.destroy_process_group()
print("done")
"""


def test_nccl_takes_one_process(device):  # gloo in a dry run
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "PORT": str(port), "ON": device.type, "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS], env=os.environ | own, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip().endswith("done"), (done.stdout + done.stderr)[-500:]
