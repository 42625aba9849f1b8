"""Checkpoints that are damaged, foreign or can't be written; a kill at any moment is in test_killed_run.py."""

import math
import os
import random
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from tests.limits import LIMIT_S
from torch import Tensor

from bigbatch import Recipe, fit
from bigbatch.core.checks import CheckpointError, OutputError
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.state.checkpoint import read_checkpoint

SHORT = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 30, "batch.micro_batch": 32})


def run(out, recipe=SHORT, **kwargs):
    return fit("digits/mlp", recipe, out=out, quiet=True, tensorboard=False, **kwargs)


def test_holds_everything_and_loads_without_running_code(tmp_path):
    run(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert set(state) == {"format", "recipe", "model", "optimizer", "progress", "workers", "arithmetic"}
    assert Recipe.from_toml(state["recipe"]) == SHORT
    assert state["progress"][0] == [960, 30] or tuple(state["progress"][0]) == (960, 30)
    assert set(state["workers"][0]["random"]) == {"python", "numpy", "torch", "cuda"}
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.bit_for_bit
def test_random_states_come_back(tmp_path):
    run(tmp_path / "run", save_every_s=0)
    draws = []
    for _ in range(2):
        random.seed()
        np.random.seed()
        torch.seed()
        (tmp_path / "run" / "result.json").unlink(missing_ok=True)
        run(tmp_path / "run", resume=True)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_checkpoint(tmp_path, keep):
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / "run" / "last.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"last.pt: is truncated or damaged .*; resume from a copy or start a new run"):
        run(tmp_path / "run", resume=True)


def test_a_flipped_bit_in_the_weights(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / "run" / "last.pt"
    content = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["model"]["1.weight"].numpy().tobytes()
    content[content.index(weights) + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.pt: is truncated or damaged"):
        run(tmp_path / "run", resume=True)


def test_another_programs_file(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="is not a bigbatch checkpoint of format 2"):
        read_checkpoint(tmp_path / "last.pt", torch.device("cpu"))


def test_code_in_a_checkpoint_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"format": 2, "x": Evil()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        read_checkpoint(tmp_path / "last.pt", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_is_refused_with_the_fields_named(tmp_path, finished):
    run(tmp_path / "run")
    if not finished:
        (tmp_path / "run" / "result.json").unlink()
    other = SHORT.replace({"optimizer.lr": 0.5, "seed": 3})
    with pytest.raises(CheckpointError, match=r"optimizer.lr: 0.5 here, 0.1 there; seed: 3 here, 0 there"):
        run(tmp_path / "run", other, resume=True)


def test_another_model_is_refused(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del state["model"]["1.weight"]
    torch.save(state, tmp_path / "run" / "last.pt")
    with pytest.raises(CheckpointError, match="does not fit this version of the model .*1.weight"):
        run(tmp_path / "run", resume=True)


def test_resume_without_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(tmp_path / "nothing", resume=True)
    with pytest.raises(CheckpointError, match="there is no folder to resume from"):
        fit("digits/mlp", SHORT, resume=True, quiet=True)


def test_a_run_is_never_overwritten(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume, or choose another --out"):
        run(tmp_path / "run")


def test_a_finished_run_gives_its_result_again(tmp_path):
    first = run(tmp_path / "run")
    before = (tmp_path / "run" / "record.jsonl").read_bytes()
    assert run(tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "record.jsonl").read_bytes() == before


FILLS_UP = """
import resource, sys
import torch
from bigbatch import Recipe, fit
from bigbatch.train import run

torch.set_num_threads(int(sys.argv[3]))  # as the process that goes on
recipe = Recipe.from_toml(open(sys.argv[2]).read())
saves = []
original = run.save_checkpoint
def save(path, **kwargs):
    saves.append(path.name)
    if len(saves) == 10:  # from now on no file may grow beyond 10,000 bytes: the write fails half-way, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    original(path, **kwargs)
run.save_checkpoint = save
fit("digits/mlp", recipe, out=sys.argv[1], quiet=True, tensorboard=False, save_every_s=0)
"""


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_a_disk_that_fills_up_during_a_checkpoint(tmp_path):
    """The run stops with a readable error, the earlier checkpoint survives whole, and the run goes on from it to the same end."""
    (tmp_path / "recipe.toml").write_text(SHORT.to_toml())
    out = tmp_path / "run"
    command = [sys.executable, "-c", FILLS_UP, str(out), str(tmp_path / "recipe.toml"), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode != 0
    assert "OutputError: can't write" in done.stderr
    assert "the earlier file is intact; free some space, then continue with --resume" in done.stderr
    assert not list(out.glob(".*.tmp"))
    survived = torch.load(out / "last.pt", weights_only=True)
    assert survived["progress"][0][1] == 8
    resumed = run(out, resume=True)
    assert resumed.updates == 30
    run(tmp_path / "straight")
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("run", "straight")]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system; the test above covers the same path")
def test_a_file_system_that_is_really_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(OutputError, match="No space left on device; (the earlier file is intact|nothing was written); free some space"):
            run(small / "run", SHORT.replace({"optimizer.name": "adam", "optimizer.lr": 1e-3}), save_every_s=0)
        assert read_checkpoint(small / "run" / "last.pt", torch.device("cpu"))["format"] == 2
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_other_arithmetic_is_warned_about(tmp_path, monkeypatch):
    """Threads, and settings by which libraries choose their kernels; in one line that names both sides."""
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    threads = torch.get_num_threads()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    changed = rf"\(num_threads: {threads + 1} here, {threads} there; MKL_CBWR: COMPATIBLE here, not set there\)"
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(UserWarning, match="continues to rounding"):  # as Python was told here; not a checkpoint that doesn't fit
            run(tmp_path / "run", resume=True)
        with pytest.warns(UserWarning, match=f"last.pt: continues to rounding, not bit for bit {changed}; for equal bits, resume with"):
            run(tmp_path / "run", resume=True)
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_that_knows_its_threads_alone(tmp_path):
    """Of version 0.1.0."""
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for threads, warned in ((torch.get_num_threads(), 0), (99, 1)):
        torch.save({**{k: v for k, v in state.items() if k != "arithmetic"}, "num_threads": threads}, tmp_path / "run" / "last.pt")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run(tmp_path / "run", resume=True)
        (tmp_path / "run" / "result.json").unlink()
        assert len([w for w in told if f"num_threads: {torch.get_num_threads()} here, 99 there" in str(w.message)]) == warned


# ------------------------------------------------------------------------------------------------ right checksums, wrong content

ADAPTIVE = SHORT.replace(
    {
        "optimizer.name": "adam",
        "optimizer.lr": 1e-3,
        "batch.micro_batch": 16,
        "batch.rule": {"kind": "norm_test", "theta": 0.6, "every_updates": 3},
    }
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs after 20 of 30 updates, and the weights that they end in."""
    made = {}
    for name, recipe in (("sgd", SHORT), ("adam", ADAPTIVE)):
        out = tmp_path_factory.mktemp(name)
        run(out, recipe, evaluate_every=10 * 32 / 1297, keep_checkpoints=True)
        end = torch.load(out / "last.pt", weights_only=True)["model"]
        sorted(out.glob("update-*.pt"))[-2].replace(out / "last.pt")
        (out / "result.json").unlink()
        made[name] = recipe, out, end
    return made


def crafted(stopped, tmp_path, name, *path, change):
    """Resume a copy of a run whose checkpoint has one value changed, and is saved again with right checksums."""
    recipe, out, end = stopped[name]
    shutil.copytree(out, tmp_path / "run")
    whole = {"state": torch.load(out / "last.pt", weights_only=True)}
    *above, key = "state", *path
    owner = whole
    for step in above:
        owner = owner[step]
    if change is None:
        del owner[key]
    else:
        owner[key] = change(owner[key])
    state = whole["state"]
    torch.save(state, tmp_path / "run" / "last.pt")
    run(tmp_path / "run", recipe, resume=True, evaluate_every=10 * 32 / 1297)
    there = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, end[name]) for name, value in there.items())


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_unchanged_checkpoint_saved_by_another_program_is_taken(stopped, tmp_path, name):
    crafted(stopped, tmp_path, name, "recipe", change=lambda recipe: recipe)


@pytest.mark.bit_for_bit
def test_a_checkpoint_of_a_machine_with_gpus_is_taken_on_one_without(stopped, tmp_path):
    """Also with the states of all four, as earlier versions saved them; what keeps the run from equal bits is said."""
    state = torch.arange(16, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"continues to rounding, not bit for bit \(gpu: not set here, A GPU there\)"):
        crafted(
            stopped,
            tmp_path,
            "sgd",
            change=lambda saved: {
                **saved,
                "arithmetic": {**saved["arithmetic"], "gpu": "A GPU"},
                "workers": [{**w, "random": {**w["random"], "cuda": [state] * 4}} for w in saved["workers"]],
            },
        )


FIRST = ("optimizer", "state", 0)
GROUP = ("optimizer", "param_groups", 0)
CRAFTED = {
    "no model": (("model",), None, "no model"),
    "a model that is a list": (("model",), list, "model = .*: input should be a valid dictionary"),
    "a weight missing": (("model", "1.weight"), None, "model: no 1.weight"),
    "a weight as a list": (("model", "1.weight"), Tensor.tolist, "model.1.weight = .*: must be a tensor"),
    "a weight of another shape": (("model", "1.weight"), lambda t: t[:-1], r"model.1.weight: is float32 of shape \(127, 64\), must be"),
    "a weight in integers": (("model", "1.weight"), Tensor.int, "model.1.weight: is int32 of shape .*, must be float32"),
    "a weight that is sparse": (("model", "1.weight"), Tensor.to_sparse, "model.1.weight: is float32"),
    "a weight of NaN": (("model", "1.weight"), lambda t: t * math.nan, "model.1.weight: holds values that are not finite"),
    "a weight too many": (("model",), lambda m: {**m, "9.bias": torch.zeros(1)}, "model: unknown 9.bias"),
    "no recipe": (("recipe",), None, "no recipe"),
    "a recipe that is a number": (("recipe",), lambda _: 3, "recipe = 3: input should be a valid string"),
    "a recipe that is no recipe": (("recipe",), lambda _: "a = 1", "unknown field 'a'"),
    "a recipe that is no TOML": (("recipe",), lambda _: "[" * 5000, "not TOML"),
    "no optimizer state": (("optimizer", "state"), lambda _: {}, "optimizer.state.0: is missing, though 1.weight was trained"),
    "no state of one parameter": (("optimizer", "state", 1), None, "optimizer.state.1: is missing, though 1.bias was trained"),
    "state of no parameter": (("optimizer", "state"), lambda s: {**s, 9: s[0]}, "optimizer.state.9: there is no such parameter"),
    "empty state of a parameter": (FIRST, lambda _: {}, "optimizer.state.0: no "),
    "no groups": (("optimizer", "param_groups"), lambda _: [], "optimizer: has 0 groups, the recipe's has 1"),
    "a group of other parameters": ((*GROUP, "params"), lambda p: p[:-1], r"optimizer.param_groups.0.params = .*: the recipe's is"),
    "another weight decay": ((*GROUP, "weight_decay"), lambda w: w + 1, "optimizer.param_groups.0.weight_decay = .*: the recipe's is"),
    "a rate that is a word": ((*GROUP, "lr"), lambda _: "x", "optimizer.param_groups.0.lr = 'x': must be a number"),
    "no peak rate": ((*GROUP, "initial_lr"), None, "optimizer.param_groups.0: no initial_lr"),
    "another peak rate": ((*GROUP, "initial_lr"), lambda r: 2 * r, "optimizer.param_groups.0.initial_lr = .*: the recipe's is"),
    "progress too short": (("progress",), lambda p: p[:3], "no progress.3"),
    "no progress": (("progress",), lambda _: None, "progress = None"),
    "a clock of one": (("progress", 0), lambda c: c[:1], "no progress.0.1"),
    "a clock of words": (("progress", 0), lambda _: ("640", "20"), "progress.0.0 = '640': input should be a valid integer"),
    "a clock beyond the end": (("progress", 0), lambda _: (64000, 2000), "progress.0 = 2,000 updates and 64,000 samples: .*never stands"),
    "a clock below zero": (("progress", 0), lambda _: (-32, -1), "progress.0.0 = -32"),
    "a micro-batch that is a word": (("progress", 1), lambda _: "x", "progress.1 = 'x'"),
    "a best score of NaN": (("progress", 2), lambda _: math.nan, "progress.2 = nan"),
    "state of the batch as a list": (("progress", 4), lambda _: [], "progress.4 = "),
    "a batch that is a word": (("progress", 4, "global_batch"), lambda _: "x", "progress.4.global_batch = 'x': must be like 32"),
    "no batch": (("progress", 4, "global_batch"), None, "progress.4: no global_batch"),
    "reached as a number": (("progress", 5), lambda _: 0, "progress.5 = 0: input should be a valid boolean"),
    "no workers": (("workers",), lambda _: [], "workers = .*: list should have at least 1 item"),
    "a worker that is none": (("workers", 0), lambda _: None, "workers.0 = None"),
    "no random states": (("workers", 0, "random"), None, "no workers.0.random"),
    "Python's random state cut": (("workers", 0, "random", "python"), lambda p: [p[0], p[1][:9], p[2]], "workers.0.random: state vector"),
    "numpy's random state cut": (("workers", 0, "random", "numpy", 1), lambda t: t[:9], "workers.0.random: "),
    "torch's random state cut": (("workers", 0, "random", "torch"), lambda t: t[:9], "workers.0.random: "),
    "torch's random state in floats": (("workers", 0, "random", "torch"), Tensor.float, "workers.0.random: "),
    "what a worker knows as a list": (("workers", 0, "comm"), lambda _: [1], "workers.0.comm = "),
    "arithmetic as a word": (("arithmetic",), lambda _: "x", "arithmetic = 'x'"),
    "a format of another type": (("format",), lambda _: "2", "is not a bigbatch checkpoint of format 2"),
}


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize(("path", "change", "why"), CRAFTED.values(), ids=CRAFTED)
def test_a_checkpoint_with_right_checksums_and_wrong_content(stopped, tmp_path, path, change, why, name):
    """Refused before anything is taken from it: a run never goes on with a part of one."""
    with pytest.raises(CheckpointError, match=rf"last.pt: .*{why}.*; start again in another --out$") as error:
        crafted(stopped, tmp_path, name, *path, change=change)
    assert "\n" not in str(error.value)


MEASURED = {
    "no rule": (("rule",), None, "progress.4: no rule"),
    "no monitor": (("monitor",), None, "progress.4: no monitor"),
    "a mean of three": (("rule", "means", "signal"), lambda m: [*m, 1.0], "progress.4.rule.means.signal: has 3 values, must have 2"),
    "a mean of lists": (("rule", "means", "signal"), lambda m: [m, m], r"progress.4.rule.means.signal.0 = .*: must be like 0.0"),
    "a count of words": (("smoothed", "num_seen"), lambda _: "3", "progress.4.smoothed.num_seen = '3': must be like 0"),
    "measured values cut": (("monitor", "measured"), lambda t: t[:, :-1], "measured: .* rows of 2 values"),
    "measured values as a list": (("monitor", "measured"), Tensor.tolist, "progress.4.monitor.measured = "),
}


@pytest.mark.parametrize(("path", "change", "why"), MEASURED.values(), ids=MEASURED)
def test_wrong_state_of_what_sets_the_batch(stopped, tmp_path, path, change, why):
    with pytest.raises(CheckpointError, match=rf"last.pt: does not fit .*{why}.*; start again in another --out$"):
        crafted(stopped, tmp_path, "adam", "progress", 4, *path, change=change)


def test_a_parameter_that_was_never_trained_needs_no_state(tmp_path):
    class Spare(DigitsMLP):
        def model(self):
            model = super().model()
            model.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
            return model

    fit(Spare(), SHORT, out=tmp_path, quiet=True, tensorboard=False, save_every_s=0)
    (tmp_path / "result.json").unlink()
    fit(Spare(), SHORT, out=tmp_path, quiet=True, tensorboard=False, resume=True)
