"""Up to where a run is saved: read from a real checkpoint without torch, and never an error."""

import os
import subprocess
import sys

import pytest
import torch
from tests.limits import LIMIT_S

from bigbatch import Recipe, fit
from bigbatch.core.storage.saved import Saved, SavedProgress, last_update, saved_progress


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    fit("digits/mlp", Recipe.named("digits/mlp").replace({"budget.epochs": 1}), out=folder, quiet=True, tensorboard=False)
    return folder


def test_the_last_update_is_that_of_the_checkpoint(run):
    assert last_update(run / "last.pt") == 41 == torch.load(run / "last.pt", weights_only=True)["progress"][0][1]


def test_progress_is_that_of_the_checkpoint(run):
    (samples, updates), _, _, train_s, *_ = torch.load(run / "last.pt", weights_only=True)["progress"]
    assert saved_progress(run / "last.pt") == SavedProgress(samples, updates, train_s)
    assert train_s > 0


def test_large_counts_and_other_files(tmp_path, run):
    path = tmp_path / "last.pt"
    torch.save({"model": {"progress.weight": torch.zeros(2)}, "progress": [(2**40, 2**33), 1, 0.5]}, path)
    assert last_update(path) == 2**33
    assert saved_progress(path).train_s is None
    for other in ({"progress": 3}, {"progress": [(1, 2, 3)]}, {"progress": torch.zeros(1)}, ["progress"]):
        torch.save(other, path)
        assert last_update(path) is None
    whole = (run / "last.pt").read_bytes()
    for content in (b"", b"progress", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert last_update(path) is None
    assert last_update(tmp_path / "none.pt") is None


def test_no_torch_is_imported(run):
    code = (
        "import sys; from pathlib import Path; from bigbatch.core.storage.saved import last_update; "
        f"print(last_update(Path({str(run / 'last.pt')!r}))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout == "41\n"


def test_what_to_type(tmp_path, run):
    assert Saved(run).in_words() == f"saved up to update 41 in {run}; go on with --resume"
    command = ["bigbatch", "train", "digits/mlp", "--out", "a b"]
    assert Saved(run, command).in_words().endswith("; go on with bigbatch train digits/mlp --out 'a b' --resume")
    assert Saved(run, [*command, "--resume"]).in_words().count("--resume") == 1
    assert Saved(tmp_path, command).in_words() == "nothing was saved yet; start again: bigbatch train digits/mlp --out 'a b'"
    assert Saved(None, command).in_words() == "nothing was saved: no --out was given"


def test_how_far_it_has_come(tmp_path, run):
    assert Saved(tmp_path).reached() == Saved(None).reached() == -1
    assert Saved(run).reached() == 41
    assert Saved(tmp_path / (300 * "x")).reached() == -1
    path = tmp_path / "last.pt"
    path.write_bytes(b"of another kind")
    os.utime(path, ns=(1, 1))
    assert Saved(tmp_path).reached() == 1
    assert Saved(tmp_path).in_words() == f"saved in {tmp_path}; go on with --resume"
