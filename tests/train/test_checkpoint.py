"""Checkpoints that are damaged, foreign or can't be written; a kill at any moment is in test_killed_run.py."""

import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from tests.limits import LIMIT_S

from bigbatch import Recipe, fit
from bigbatch.core.checks import CheckpointError, OutputError
from bigbatch.train.checkpoint import read_checkpoint

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
    with pytest.raises(CheckpointError, match=r"last.pt: is truncated or damaged .*; resume from a copy or start anew"):
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
from bigbatch.train import loop

torch.set_num_threads(int(sys.argv[3]))  # as the process that goes on
recipe = Recipe.from_toml(open(sys.argv[2]).read())
saves = []
original = loop.save_checkpoint
def save(path, **kwargs):
    saves.append(path.name)
    if len(saves) == 10:  # from now on no file may grow beyond 10,000 bytes: the write fails half-way, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    original(path, **kwargs)
loop.save_checkpoint = save
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
