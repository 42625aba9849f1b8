"""Is the measured noise scale the true one? Against the gradient of every training sample, beside two other estimators.

    python studies/noise_scale/run.py [--tasks fashion_mnist/mlp fashion_mnist/cnn]

At weights from three moments of a run of the named recipe (constant rate, so that moments of different lengths are one run), kept fixed:
    truth       tr(S) and |G|^2 from the gradient of each of the 55,000 training samples by itself (torch.func)
    monitor     NoiseScaleMonitor over two epochs of updates of 512 in four micro-batches of 128
    adaptdl     AdaptDL 0.2.11's GradientNoiseScale on the same micro-batches, its code as released
    k-diffusion k-diffusion 0.1.1's GradientNoiseScale on the same norms, its code as released
The two are run where they are installed (pip install --no-deps adaptdl k-diffusion). In float32 throughout. Writes results.json.
"""

import argparse
import importlib.util
import json
import subprocess
import tempfile
import types
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.noise.per_example import noise_of_examples
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
MOMENTS = (100, 1000, 3400)  # updates
PIECE, PIECES, EPOCHS = 128, 4, 2


def model_after(name, updates):
    recipe = Recipe.named(name)
    changes = {"budget.epochs": None, "budget.updates": updates, "schedule.decay.kind": "constant", "precision": "float32"}
    with tempfile.TemporaryDirectory() as folder:
        fit(name, recipe.replace(changes), out=folder, quiet=True, tensorboard=False, measure_test=False, evaluate_every=1e9)
        state = torch.load(Path(folder) / "last.pt", weights_only=True)["model"]
    model = load_task(name).model(**recipe.model)
    model.load_state_dict(state)
    return model


def released(package, path):
    """A module of a package that is installed, without the rest of it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    file = Path(spec.submodule_search_locations[0]) / path
    spec = importlib.util.spec_from_file_location(f"released_{package}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adaptdls(model):
    """AdaptDL's estimator on a model, told by hand when an update is complete."""
    module = released("adaptdl", "torch/gradient_noise_scale.py")
    if module is None:
        return None, None
    loop = types.SimpleNamespace(require_backward_grad_sync=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return loop, module.GradientNoiseScale(loop, optimizer, num_replicas=1, accum_scale=1.0)


def measure(name, updates):
    task, model = load_task(name), model_after(name, updates)
    x, y = task.splits().train.tensors
    size = len(y)
    truth = noise_of_examples(model, task.losses, [(x[i : i + 1024], y[i : i + 1024]) for i in range(0, size, 1024)], population=size)
    monitor = NoiseScaleMonitor(model, population=size)
    loop, theirs = adaptdls(other := load_task(name).model(**Recipe.named(name).model))
    other.load_state_dict(model.state_dict())
    diffusion = released("k_diffusion", "gns.py")
    third = diffusion.GradientNoiseScale() if diffusion else None
    whole = PIECE * PIECES
    for number in range(EPOCHS * size // whole):
        index, norms, sums = sample_indices(1, size, number * whole, whole), [], None
        for last, piece in enumerate(index.split(PIECE), 1):
            task.losses(model(x[piece]), y[piece]).sum().div(whole).backward()
            monitor.micro_batch(PIECE, divisor=whole)
            if theirs is not None:
                loop.require_backward_grad_sync = last == PIECES
                task.losses(other(x[piece]), y[piece]).mean().backward()
            now = torch.cat([p.grad.flatten() for p in model.parameters()])
            norms.append(float(((now - sums) if sums is not None else now).square().sum()) * PIECES**2)
            sums = now
        if third is not None:
            third.update(sum(norms) / PIECES, float(sums.square().sum()), PIECE, whole)
        monitor.update()
        model.zero_grad()
        if theirs is not None:
            theirs.reset_accumulation()
    got = monitor.estimate()
    return {
        "task": name,
        "updates": updates,
        "truth": {"noise_scale": truth.noise / truth.signal, "signal": truth.signal, "noise": truth.noise},
        "monitor": got._asdict(),
        "adaptdl": PIECE * theirs.var_avg() / theirs.sqr_avg() if theirs is not None else None,
        "k-diffusion": third.get_gns() if third is not None else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=["fashion_mnist/mlp", "fashion_mnist/cnn"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    path = HERE / "results.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in arguments.tasks:
        for updates in MOMENTS:
            if any((row["task"], row["updates"]) == (name, updates) for row in rows):
                continue
            rows.append(row := measure(name, updates))
            true = row["truth"]["noise_scale"]
            told = {each: row[each] for each in ("adaptdl", "k-diffusion")} | {"monitor": row["monitor"]["noise_scale"]}
            print(name, updates, round(true, 1), {each: value and round(value / true, 3) for each, value in told.items()}, flush=True)
            path.write_text(json.dumps({"rows": rows, "commit": commit, "environment": environment()}, indent=2) + "\n")
