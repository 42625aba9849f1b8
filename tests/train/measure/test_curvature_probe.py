import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.distributed.ranks import run_ranks
from torch import nn

import bigbatch
from bigbatch import Interrupted, Recipe, fit
from bigbatch.core.checks import Diverged, RecipeError
from bigbatch.curvature import top_eigenvalues
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.measure.curvature_probe import refreshed
from bigbatch.train.state.checkpoint import checkpoints_of
from bigbatch.train.state.record import read_record

SCRIPT = Path(bigbatch.__file__).parents[2] / "tests" / "distributed" / "train.py"
LOOKS = {"curvature": {"every_updates": 10, "samples": 130, "eigenvalues": 2, "trace": 0.1}}
OWN = "tests.train.measure.test_curvature_probe:Noisy"


class Noisy(DigitsMLP):
    """With batch norm and dropout: buffers and random numbers that a look could disturb."""

    name = OWN

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


class Stops(Noisy):
    """Interrupted in its so many-th update."""

    def __init__(self, update):
        super().__init__()
        self.left = update

    def losses(self, outputs, targets):
        self.left -= outputs.requires_grad and len(targets) == 32
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(outputs, targets)


NOISY = Recipe.named("digits/mlp").replace(
    {"task": OWN, "batch": {"global_batch": 64, "micro_batch": 32, "ghost_batch": 16}, "budget": {"updates": 25}}
)
PLAIN = Recipe.named("digits/mlp").replace({"batch": {"global_batch": 64, "micro_batch": 32}, "budget": {"updates": 25}})


def run(recipe, out, task=None, **options):
    return fit(task or Noisy(), recipe, out=out, quiet=True, tensorboard=False, measure_test=False, **options)


def state(folder, name="last.pt"):
    return torch.load(folder / name, weights_only=True)


def looks(folder):
    lines = [line for line in read_record(folder / "record.jsonl") if line["kind"] == "curvature"]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(one, other):
    """Weights, statistics, momenta and random states, to the last bit."""
    a, b = state(one), state(other)
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    for number, values in a["optimizer"]["state"].items():
        assert torch.equal(values["momentum_buffer"], b["optimizer"]["state"][number]["momentum_buffer"])
    for mine, theirs in zip(a["workers"], b["workers"], strict=True):
        assert torch.equal(mine["random"]["torch"], theirs["random"]["torch"])
        assert mine["random"]["python"] == theirs["random"]["python"]
        assert torch.equal(mine["random"]["numpy"][1], theirs["random"]["numpy"][1])


@pytest.mark.bit_for_bit
def test_looking_changes_no_bit_of_the_run_and_says_what_it_costs(tmp_path):
    run(NOISY, tmp_path / "without")
    result = run(NOISY.replace(LOOKS), tmp_path / "with")
    assert_same_run(tmp_path / "without", tmp_path / "with")
    seen = looks(tmp_path / "with")
    assert [look["update"] for look in seen] == [10, 20, 25], "and after the last update"
    for look in seen:
        assert look["converged"] == [True, True]
        assert max(look["residuals"]) <= 1e-3
        assert look["eigenvalues"][0] > look["eigenvalues"][1] > 0
        assert look["trace"]["low"] <= look["trace"]["value"] <= look["trace"]["high"]
    seconds = [line["seconds"] for line in read_record(tmp_path / "with" / "record.jsonl") if line["kind"] == "curvature"]
    assert result.curvature_s == pytest.approx(sum(seconds), abs=1e-3)
    assert result.cost_of_curvature().startswith(f", curvature another {result.curvature_s:.1f} s (")
    assert read_record(tmp_path / "with" / "record.jsonl")[-1]["curvature_s"] == result.curvature_s


def test_it_is_the_top_of_the_dense_hessian_of_those_samples(tmp_path):
    recipe = PLAIN.replace({"model.hidden": 4, "precision": "float64", "budget.updates": 10, **LOOKS, "curvature.tolerance": 1e-6})
    run(recipe, tmp_path, "digits/mlp")
    task, (look,) = DigitsMLP(), looks(tmp_path)
    model = task.model(hidden=4).double()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    chosen = sample_indices(recipe.seed, recipe.num_train_samples, 0, 130)
    inputs, targets = (t[chosen] for t in task.splits().train.tensors)
    flat = torch.cat([state(tmp_path)["model"][name].flatten() for name in names])

    def loss(weights):
        pieces = torch.split(weights, [s.numel() for s in shapes])
        of = {name: piece.view(s) for name, piece, s in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, of, (inputs.double(),)), targets)

    dense = torch.autograd.functional.hessian(loss, flat)
    assert look["eigenvalues"] == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:2].tolist(), rel=1e-6)
    assert look["trace"]["value"] == pytest.approx(dense.trace().item(), rel=0.4)


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("update", [15, pytest.param(24, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_sees_the_same_from_there_on(tmp_path, update):
    recipe = NOISY.replace(LOOKS)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "cut", Stops(2 * update), save_every_s=0)
    assert len(looks(tmp_path / "cut")) == update // 10
    result = run(recipe, tmp_path / "cut", resume=True)
    assert looks(tmp_path / "cut") == looks(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    lines = [line["seconds"] for line in read_record(tmp_path / "cut" / "record.jsonl") if line["kind"] == "curvature"]
    assert result.curvature_s == pytest.approx(sum(lines), abs=1e-3), "of both sessions"


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_two_workers_see_what_one_sees_and_are_not_disturbed(tmp_path):
    shared = {"curvature": {"every_updates": 20, "samples": 65, "tolerance": 1e-6}, "precision": "float64"}
    ring = {"comm": {"kind": "gossip", "method": "d_psgd", "topology": "ring"}}
    plain = PLAIN.replace({**shared, "curvature.trace": 0.1, "budget.updates": 1})
    recipes = {"two": NOISY.replace(shared), "ring": NOISY.replace({**shared, **ring})}
    recipes |= {f"{name}-without": recipe.replace({"curvature": None}) for name, recipe in recipes.items()}
    jobs = [{"task": OWN, "recipe": recipe.to_toml(), "out": str(tmp_path / name)} for name, recipe in recipes.items()]
    jobs += [{**jobs[0], "out": str(tmp_path / "cut"), "options": options} for options in ({"stop_after": 22}, {"resume": True})]
    jobs += [{"task": "digits/mlp", "recipe": plain.to_toml(), "out": str(tmp_path / "both")}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(SCRIPT, 2, tmp_path, str(tmp_path / "jobs.json"))
    for name in ("two", "ring"):
        assert_same_run(tmp_path / name, tmp_path / f"{name}-without")
    run(plain, tmp_path / "alone", "digits/mlp")
    for one, other in (("alone", "both"), ("two", "cut")):  # saving adds up running statistics of two workers, which rounds
        for mine, theirs in zip(looks(tmp_path / one), looks(tmp_path / other), strict=True):
            assert theirs["update"] == mine["update"]
            assert theirs["eigenvalues"] == pytest.approx(mine["eigenvalues"], rel=1e-9)
            if one == "alone":
                assert theirs["trace"]["value"] == pytest.approx(mine["trace"]["value"], rel=1e-9)


def test_what_has_overtaken_the_last_eigenvector_is_seen():
    class Diagonal:
        size, dtype, device = 100_000, torch.float32, torch.device("cpu")

        def __call__(self, vectors):
            return vectors * values

    values = torch.rand(Diagonal.size, generator=torch.Generator().manual_seed(0))
    values[0], values[1] = 10.0, 12.0
    before = torch.zeros(1, Diagonal.size)
    before[0, 0] = 1.0
    seen = top_eigenvalues(Diagonal(), start=refreshed(before, seed=0))
    assert seen.values[0].item() == pytest.approx(12.0, rel=1e-4)


def test_a_run_that_diverges_ends_as_it_would_without(tmp_path):
    with pytest.raises(Diverged, match="must be finite"):
        run(PLAIN.replace({**LOOKS, "curvature.every_updates": 1, "optimizer.lr": 1e30}), tmp_path, "digits/mlp")


def test_checkpoints_are_kept(tmp_path):
    run(PLAIN, tmp_path, "digits/mlp", keep_checkpoints=True)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["update-000000021.pt", "update-000000025.pt", "best.pt", "last.pt"]
    for name, value in state(tmp_path)["model"].items():
        assert torch.equal(value, state(tmp_path, "update-000000025.pt")["model"][name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"comm": {"kind": "fully_shard"}}, r"\[curvature\] with comm.kind = \"fully_shard\": needs whole weights on every worker"),
        ({"comm": {"kind": "parameter_server"}}, r"\[curvature\] with comm.kind = \"parameter_server\""),
        ({"curvature": {}}, "curvature.every_updates"),
        ({"curvature.eigenvalues": 0}, "curvature.eigenvalues = 0"),
        ({"curvature.tolerance": -1.0}, "curvature.tolerance = -1"),
        ({"curvature.trace": -0.1}, "curvature.trace"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        PLAIN.replace(LOOKS).replace(changes)


def test_a_recipe_keeps_its_section():
    recipe = PLAIN.replace(LOOKS)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert PLAIN.replace({"curvature": {"every_updates": 5}}).curvature.trace is False
