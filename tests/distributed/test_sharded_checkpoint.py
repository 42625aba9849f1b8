"""Checkpoints under fully_shard: equal bits on any number of workers, whole whatever happens meanwhile, and no code in them."""

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.command import bigbatch
from tests.distributed.jobs import ForkedJob, left_behind
from tests.distributed.ranks import ROOT, run_ranks
from tests.distributed.sharded_checkpoints import OPTIMIZERS, same
from tests.limits import LIMIT_S
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from bigbatch import Recipe, fit
from bigbatch.comm.shard_files import SafetensorsWriter, size_and_checksum
from bigbatch.core.checks import CheckpointError, OutputError
from bigbatch.report import write_report
from bigbatch.study.curvature.curvature import curvature
from bigbatch.train.state.checkpoint import FORMAT, SHARDED, read_checkpoint
from bigbatch.train.state.export import export_weights
from bigbatch.train.state.folder import open_folder

STATES = Path(__file__).with_name("sharded_checkpoints.py")
TRAIN = Path(__file__).with_name("train.py")
CPU = torch.device("cpu")
SHORT = Recipe.named("digits/mlp").replace(
    {
        "comm.kind": "fully_shard",
        "precision": "float64",
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "budget.epochs": None,
        "budget.updates": 30,
        "batch.micro_batch": 8,
    }
)


def ranks(script, world, folder, *arguments):
    """Start ranks whose logs and meeting place are their own."""
    place = folder / f"ranks-{len(list(folder.glob('ranks-*')))}"
    place.mkdir()
    return run_ranks(script, world, place, *arguments)


def trained(world, folder, *jobs):
    """Runs of SHORT on so many workers, one after the other; each a folder and options of `fit`."""
    listed = [{"task": "digits/mlp", "recipe": SHORT.to_toml(), "out": str(out), "options": options} for out, options in jobs]
    (folder / "jobs.json").write_text(json.dumps(listed))
    ranks(TRAIN, world, folder, str(folder / "jobs.json"))


def state(out, name="last.pt"):
    return read_checkpoint(out / name, CPU)


@pytest.mark.bit_for_bit
@pytest.mark.slow
def test_four_save_and_two_and_one_load_to_the_last_bit(tmp_path):
    """Weights, running statistics and the state of every optimizer; ragged shards, empty shards, several files a worker."""
    ranks(STATES, 4, tmp_path, "save", str(tmp_path))
    files = list((tmp_path / "shards").glob("muon.*/*.safetensors"))
    assert len(files) > 4
    for world in (2, 1):
        assert ranks(STATES, world, tmp_path, "load", str(tmp_path))[0].count("equal") == len(OPTIMIZERS)


@pytest.mark.bit_for_bit
@pytest.mark.slow
def test_one_saves_as_before_and_two_load_to_the_last_bit(tmp_path):
    ranks(STATES, 1, tmp_path, "save", str(tmp_path))
    assert torch.load(tmp_path / "adamw.pt", weights_only=True)["format"] == FORMAT
    assert not (tmp_path / "shards").exists()
    assert ranks(STATES, 2, tmp_path, "load", str(tmp_path))[0].count("equal") == len(OPTIMIZERS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of two workers, and one that was stopped after update 12."""
    folder = tmp_path_factory.mktemp("runs")
    trained(2, folder, (folder / "straight", {"keep_checkpoints": True}), (folder / "stopped", {"stop_after": 12, "save_every_s": 0}))
    return folder


def copy(runs, name, tmp_path):
    return Path(shutil.copytree(runs / name, tmp_path / name))


@pytest.mark.bit_for_bit
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*continues to rounding, not bit for bit .num_threads")  # where this process has more than a worker
def test_resumed_by_two_bit_for_bit_and_by_one_and_three_to_rounding(runs, tmp_path):
    assert state(runs / "stopped")["progress"][0][1] == 12
    straight = state(runs / "straight")
    for world in (1, 2, 3):
        out = copy(runs, "stopped", tmp_path)
        if world == 1:
            fit("digits/mlp", SHORT, out=out, resume=True, quiet=True, tensorboard=False)
        else:
            trained(world, tmp_path, (out, {"resume": True}))
        resumed = state(out)
        assert resumed["format"] == (FORMAT if world == 1 else SHARDED)
        if world == 2:
            assert same(resumed["model"], straight["model"])
            assert same(resumed["optimizer"], straight["optimizer"])
        for name, value in straight["model"].items():
            torch.testing.assert_close(resumed["model"][name], value, rtol=0, atol=1e-10)
        assert [path.name.partition(".")[0] for path in (out / "shards").glob("last.*")] == ["last"] * (world > 1)
        shutil.rmtree(out)


def test_every_checkpoint_names_its_own_shards(runs):
    """The last, the best and those that were kept; no folder is left over, and what is not spread is there once."""
    out = runs / "straight"
    found = {path.name: torch.load(path, weights_only=True) for path in out.glob("*.pt")}
    assert {"last.pt", "best.pt", "update-000000030.pt"} <= found.keys()
    assert {s["shards"]["folder"] for s in found.values()} == {path.name for path in (out / "shards").iterdir()}
    for name, header in found.items():
        assert header["format"] == SHARDED
        assert all(value is None for value in header["model"].values())
        assert len(header["workers"]) == 2
        files = list((out / "shards" / header["shards"]["folder"]).iterdir())
        assert {file.suffix for file in files} == {".safetensors"}
        assert len(files) == 2, name
    assert same(state(out)["model"], state(out, "update-000000030.pt")["model"])


def test_curvature_report_and_export_read_what_is_spread(runs, tmp_path):
    out = copy(runs, "straight", tmp_path)
    study = curvature(out, samples=64, eigenvalues=1, quiet=True)
    assert study.runs[0].checkpoint == "last.pt"
    assert "curvature" in write_report(out).read_text()
    export_weights(out, tmp_path / "weights.safetensors", checkpoint="best")
    assert same(load_file(tmp_path / "weights.safetensors"), state(out, "best.pt")["model"])


def test_a_folder_that_workers_do_not_share(tmp_path):
    """Files that others say they wrote, and the first does not see."""
    writer = SafetensorsWriter(tmp_path / "shards" / "last.1", {}, 2, lambda files: pytest.fail("a checkpoint without its shards"))
    written = WriteResult(MetadataIndex("model.weight"), 8, ("shard-00002.safetensors", 8, 0))
    with pytest.raises(
        OutputError, match="was written by another worker, but worker 0 cannot see it; give an --out on a disk that all workers"
    ):
        writer.finish(Metadata({}), [[], [written]])


def shard_of(out):
    return min((out / "shards").glob("last.*/*.safetensors"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": (flip, r"safetensors: is truncated or damaged \(wrong checksum\); resume from a copy or start a new run"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-8]), r"is truncated or damaged \(wrong checksum\)"),
    "empty": (lambda path: path.write_bytes(b""), r"is truncated or damaged \(wrong checksum\)"),
    "missing": (Path.unlink, r"safetensors: No such file or directory; resume from a copy or start a new run"),
    "all missing": (lambda path: shutil.rmtree(path.parent), r"safetensors: No such file or directory"),
    "a foreign file": (lambda path: path.with_name("more.safetensors").touch(), r"more.safetensors: does not belong to this checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_shards_are_refused(runs, tmp_path, name):
    damage, words = DAMAGE[name]
    out = copy(runs, "stopped", tmp_path)
    damage(shard_of(out))
    with pytest.raises(CheckpointError, match=words):
        fit("digits/mlp", SHORT, out=out, resume=True, quiet=True, tensorboard=False)


def test_damage_that_another_worker_sees_is_not_taken_for_another_model(runs, tmp_path):
    """Files are shared out among the workers to be checked: the second sees this one."""
    out = copy(runs, "stopped", tmp_path)
    flip(max((out / "shards").glob("last.*/*.safetensors")))
    (tmp_path / "recipe.toml").write_text(SHORT.to_toml())
    command = ["train", "digits/mlp", "--recipe", "recipe.toml", "--out", "stopped", "--resume", "--workers", "2", "--quiet"]
    lines = sorted(bigbatch(*command, cwd=tmp_path, expect=2).stderr.splitlines())
    assert len(lines) == 2, lines
    for line, who in zip(lines, ("error: worker 1 of 2: ", "worker 1: error: "), strict=True):
        assert line.startswith(f"{who}checkpoint stopped/shards/last.")
        assert line.endswith("is truncated or damaged (wrong checksum); resume from a copy or start a new run")


def test_shards_of_another_model_are_refused(runs, tmp_path):
    """With checksums that fit."""
    out = copy(runs, "stopped", tmp_path)
    header = torch.load(out / "last.pt", weights_only=True)
    shape, *rest = header["shards"]["tensors"]["model.1.weight"]
    header["shards"]["tensors"]["model.1.weight"] = ((shape[0] + 1, shape[1]), *rest)
    torch.save(header, out / "last.pt")
    with pytest.raises(CheckpointError, match=r"does not hold the expected tensors \(.*model.1.weight"):
        state(out)
    header["shards"]["tensors"] |= {"model.1.weight": (shape, *rest), "model.more": (shape, *rest)}
    torch.save(header, out / "last.pt")
    with pytest.raises(CheckpointError, match=r"does not hold the expected tensors \(.*model.more"):
        state(out)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_shards_is_not_run(runs, tmp_path):
    """Pickles where torch.distributed.checkpoint would look for its metadata, and as a shard with a checksum that fits."""
    out = copy(runs, "stopped", tmp_path)
    shard = shard_of(out)
    for name in (".metadata", "__0.metadata", "model.safetensors.index.json"):
        shard.with_name(name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert state(out)["progress"][0][1] == 12
    shard.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    header = torch.load(out / "last.pt", weights_only=True)
    header["shards"]["files"][shard.name] = size_and_checksum(shard)
    torch.save(header, out / "last.pt")
    with pytest.raises(CheckpointError, match="does not hold the expected tensors"):
        state(out)
    assert not (tmp_path / "ran").exists()


def test_what_no_checkpoint_names_is_deleted_at_the_start(runs, tmp_path):
    out = copy(runs, "stopped", tmp_path)
    named = {path.name for path in (out / "shards").iterdir()}
    for name in ("last.0badcafe", "best.0badcafe", "update-000000099.0badcafe"):
        (out / "shards" / name).mkdir()
        (out / "shards" / name / "half.safetensors").touch()
    open_folder(out, resume=True)
    assert {path.name for path in (out / "shards").iterdir()} == named
    (out / "last.pt").write_bytes(b"damaged: perhaps there is a copy of it")
    open_folder(out, resume=True)
    assert {path.name for path in (out / "shards").iterdir()} == named


# What happens while shards are being written: the job is held in the middle of it.

UPDATES = 100
LONG = SHORT.replace({"budget.updates": UPDATES, "precision": "float32"})


class HeldJob:
    """A job of the command line, which can be held in the middle of writing a checkpoint."""

    def __init__(self, tmp_path, monkeypatch, out="run", workers="2"):
        monkeypatch.setenv("BIGBATCH_TEST_HOLD", str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        self.folder, self.out = tmp_path, tmp_path / out
        (tmp_path / "recipe.toml").write_text(LONG.to_toml())
        self.command = ["tests.distributed.held_writes:Digits", "--recipe", str(tmp_path / "recipe.toml"), "--workers", workers]
        self.start()

    def start(self, *arguments):
        self.job = ForkedJob(self.out, *self.command, "--save-every", "0.1", *arguments, cwd=self.folder)

    def hold(self, workers=2):
        """Returns the number of updates in the checkpoint that was there before the one that is being written."""
        self.job.wait_for_updates(10)
        end = time.monotonic() + LIMIT_S
        while not self.all_hold(workers, patience_s=10):
            assert time.monotonic() < end, "nobody writes"
            self.go_on()  # one of them was past the place where it holds when the file came, and waits for the others
            time.sleep(0.5)
        return self.saved()

    def all_hold(self, workers, patience_s):
        (self.folder / "hold").touch()
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if len(list(self.folder.glob("held-*"))) >= workers:
                return True
            assert self.job.process.poll() is None, self.job.process.stderr.read()
            time.sleep(0.02)
        return False

    def go_on(self):
        (self.folder / "hold").unlink()
        for mark in self.folder.glob("held-*"):
            mark.unlink(missing_ok=True)

    def saved(self):
        return state(self.out)["progress"][0][1]

    def updates(self):
        return [line["update"] for line in self.job.lines() if line["kind"] == "update"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The end of an undisturbed run of two workers."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        held = HeldJob(folder, patch)
        code, said = held.job.end()
    assert code == 0, said
    return state(held.out)


def named(out):
    """The folders of shards that a run's checkpoints name."""
    return {torch.load(path, weights_only=True)["shards"]["folder"] for path in out.glob("*.pt")}


def assert_whole(held, straight):
    assert held.updates() == list(range(1, UPDATES + 1))
    end = state(held.out)
    assert same(end["model"], straight["model"])
    assert same(end["optimizer"], straight["optimizer"])
    assert left_behind(held.out) == []
    assert {path.name for path in (held.out / "shards").iterdir()} == named(held.out)


@pytest.mark.slow
@pytest.mark.bit_for_bit
@pytest.mark.slow
@pytest.mark.parametrize("victims", ["worker 1", "worker 0", "all"])
def test_killed_while_a_checkpoint_is_written(tmp_path, monkeypatch, straight, victims):
    """Training goes on meanwhile; the earlier checkpoint is whole, and the run goes on from it to the same bits."""
    held = HeldJob(tmp_path, monkeypatch)
    saved = held.hold()
    assert {path.name for path in (held.out / "shards").iterdir()} - named(held.out), "nothing was being written"  # last.pt, or best.pt
    held.job.wait_for_updates(int((tmp_path / "held-0").read_text()) + 1)
    workers = held.job.workers()
    for pid in {"worker 0": workers[:1], "worker 1": workers[1:], "all": workers}[victims]:
        os.kill(pid, signal.SIGKILL)
    code, said = held.job.end()
    assert code == 4, said
    assert left_behind(held.out) == []
    assert held.saved() == saved
    held.go_on()
    held.start("--resume")
    code, said = held.job.end()
    assert code == 0, said
    assert_whole(held, straight)


@pytest.mark.slow
def test_the_group_forms_anew_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    held = HeldJob(tmp_path, monkeypatch, workers="2:3")
    held.hold(workers=3)
    worker = held.job.workers()[1]
    os.kill(worker, signal.SIGKILL)
    held.go_on()
    code, said = held.job.end()
    assert code == 0, said
    assert "resumes after update" in said
    assert held.updates() == list(range(1, UPDATES + 1))
    assert left_behind(held.out) == []
    assert held.saved() == UPDATES


def test_stopped_while_a_checkpoint_is_written(tmp_path, monkeypatch, straight):
    """SIGTERM: the run saves once more, waits until that is written, and then says so."""
    held = HeldJob(tmp_path, monkeypatch)
    held.hold()
    held.job.process.send_signal(signal.SIGTERM)
    held.go_on()
    code, said = held.job.end()
    assert code == 130, said
    assert "and saved; continue with the same command and --resume" in said
    assert held.saved() == held.updates()[-1] < UPDATES
    held.start("--resume")
    assert held.job.end()[0] == 0
    assert_whole(held, straight)


def test_a_disk_that_fills_up_while_shards_are_written(tmp_path, monkeypatch, straight):
    """One worker's alone: all stop, in one line and with exit code 2; the earlier checkpoint is whole, and the failed one is gone."""
    held = HeldJob(tmp_path, monkeypatch)
    held.hold()
    (tmp_path / "full").touch()
    held.go_on()
    code, said = held.job.end()
    assert code == 2, said
    words = "last.pt (shards of worker 1): File too large; the earlier checkpoint is intact; free some space, then continue with --resume"
    assert said.count("error: ") == 1, said
    assert f"error: can't write {held.out / words}" in said
    assert held.saved() < UPDATES
    assert len(list((held.out / "shards").glob("last.*"))) == 1
    (tmp_path / "full").unlink()
    held.start("--resume")
    assert held.job.end()[0] == 0
    assert_whole(held, straight)
