"""The record: one line per update, cut where a run resumes, readable after a kill or damage, and loud when the disk is full."""

import json
import math
import subprocess
import sys

import pytest
import torch
from tests.limited_files import limited_files
from tests.limits import LIMIT_S

from bigbatch import Diverged, Recipe, fit
from bigbatch.core.checks import InputError, OutputError
from bigbatch.core.clock import Clock
from bigbatch.report import write_report
from bigbatch.train.measure.evaluate import Evaluation
from bigbatch.train.state.record import Record, environment, read_record


def record_of(folder, updates, clock=None):
    clock = clock or Clock()
    record = Record(folder, clock, tensorboard=False).open()
    for _ in range(updates):
        clock = clock.after(10)
        record.update(clock, torch.tensor(5.0 * clock.updates), lr=0.1, num_samples=10)
    record.flush()
    record.close()
    return clock


def test_losses_are_means(tmp_path):
    record_of(tmp_path, 3)
    assert [line["loss"] for line in read_record(tmp_path / "record.jsonl")] == [0.5, 1.0, 1.5]


def test_a_resumed_run_goes_on_from_its_checkpoint_without_gap_or_double(tmp_path):
    record_of(tmp_path, 9)
    record_of(tmp_path, 3, clock=Clock(samples=40, updates=4))
    assert [line["update"] for line in read_record(tmp_path / "record.jsonl")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_that_died_before_its_first_update_starts_anew(tmp_path):
    for _ in range(2):
        record = Record(tmp_path, Clock(), tensorboard=False).open()
        record.start(Recipe.named("digits/mlp"), task="digits/mlp")
        record.close()
    assert [line["kind"] for line in read_record(tmp_path / "record.jsonl")] == ["start"]


def test_closing_lines_are_written_again_by_a_resumed_run(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False).open()
    clock = Clock().after(10)
    record.update(clock, torch.tensor(1.0), lr=0.1, num_samples=10)
    record.evaluation(clock, "validation", Evaluation(1.0, 0.5, 4))
    record.evaluation(clock, "test", Evaluation(1.0, 0.5, 4))
    record.end(clock)
    Record(tmp_path, clock, tensorboard=False).open().close()
    lines = read_record(tmp_path / "record.jsonl")
    assert [(line["kind"], line.get("split")) for line in lines] == [("update", None), ("evaluation", "validation")]


def test_half_a_line_is_dropped(tmp_path):
    record_of(tmp_path, 3)
    path = tmp_path / "record.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["update"] for line in read_record(path)] == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_ends_it(tmp_path, bad):
    record = Record(tmp_path, Clock(), tensorboard=False).open()
    for i, loss in enumerate([1.0, bad, bad], start=1):
        record.update(Clock(10 * i, i), torch.tensor(loss), lr=0.1, num_samples=10)
    with pytest.raises(Diverged, match=f"loss = {bad} at update 2 \\(learning rate 0.1\\): must be finite"):
        record.flush()
    lines = read_record(tmp_path / "record.jsonl")
    assert [line["kind"] for line in lines] == ["update", "diverged"]
    assert all(not isinstance(v, float) or math.isfinite(v) for line in lines for v in line.values())  # strict JSON


def test_an_evaluation_that_is_not_finite(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False).open()
    with pytest.raises(Diverged, match="validation loss = nan after update 3: must be finite"):
        record.evaluation(Clock(30, 3), "validation", Evaluation(math.nan, 0.1, 4))
    assert json.loads((tmp_path / "record.jsonl").read_text())["kind"] == "diverged"


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False).open()
    record._file.close()
    record._file = open("/dev/full", "a")  # noqa: SIM115 every write to it fails with "No space left on device"
    record.update(Clock(10, 1), torch.tensor(1.0), lr=0.1, num_samples=10)
    with pytest.raises(OutputError, match="can't write /dev/full: No space left on device; free some space, then continue with --resume"):
        record.flush()
    record.close()


def test_the_environment_names_no_host():
    import platform

    assert platform.node() not in json.dumps(environment())


# ------------------------------------------------------------------------------------------------ damage

DAMAGE = {
    "not UTF-8": b"\xff\xfe\n",
    "a number": b"12\n",
    "null": b"null\n",
    "a list": b"[]\n",
    "zeros": b"\0" * 512 + b"\n",
    "a number too long": b'{"kind": "update", "update": ' + b"9" * 5000 + b"}\n",
    "nested too deeply": b"[" * 5000 + b"\n",
    "wrong types": b'{"kind": "update", "update": 3, "samples": "x", "loss": 1.0, "lr": 0.1, "global_batch": 10}\n',
    "no number": b'{"kind": "update", "update": 3, "samples": 30, "loss": NaN, "lr": 0.1, "global_batch": 10}\n',
    "too few fields": b'{"kind": "update", "update": 3}\n',
    "unknown kind": b'{"kind": "updates", "update": 3}\n',
}


def updates_of(path):
    return [line["update"] for line in read_record(path) if line["kind"] == "update"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_in_the_middle_costs_its_own_line(tmp_path, damage):
    path = tmp_path / "record.jsonl"
    record_of(tmp_path, 9)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=r"record.jsonl: 1 line is damaged \(line 3: ") as told:
        assert updates_of(path) == [1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.warns(UserWarning, match=r"8 can be read and are kept; the file as it was is record.jsonl.damaged-1$"):
        record_of(tmp_path, 2, clock=Clock(samples=80, updates=8))
    assert len(told) == 1
    assert updates_of(path) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert (tmp_path / "record.jsonl.damaged-1").read_bytes() == before
    (repaired,) = [line for line in read_record(path) if line["kind"] == "repaired"]
    assert repaired == {"kind": "repaired", "update": 8, "samples": 80, "missing": [[3, 3]], "damaged": "record.jsonl.damaged-1"}
    record_of(tmp_path, 1, clock=Clock(samples=90, updates=9))  # told once


@pytest.mark.parametrize("last", [b"\xff", b"12", b"null", b"[]", b"\0\0"])
def test_a_last_line_that_no_kill_leaves(tmp_path, last):
    record_of(tmp_path, 3)
    path = tmp_path / "record.jsonl"
    path.write_bytes(path.read_bytes() + last)
    with pytest.warns(UserWarning, match=r"1 line is damaged \(line 4: .*, 3 can be read and are kept"):
        record_of(tmp_path, 1, clock=Clock(samples=30, updates=3))
    assert updates_of(path) == [1, 2, 3, 4]


def test_lines_of_windows(tmp_path):
    record_of(tmp_path, 3)
    path = tmp_path / "record.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    record_of(tmp_path, 1, clock=Clock(samples=30, updates=3))
    assert updates_of(path) == [1, 2, 3, 4]


def test_a_part_that_is_there_twice_counts_once(tmp_path):
    record_of(tmp_path, 6)
    path = tmp_path / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], *lines[2:]]))
    with pytest.warns(UserWarning, match=r"3 lines are damaged \(line 6: update 3 is out of order; line 7"):
        record_of(tmp_path, 1, clock=Clock(samples=60, updates=6))
    assert updates_of(path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_digit_that_changed_takes_no_other_line_with_it(tmp_path):
    record_of(tmp_path, 6)
    path = tmp_path / "record.jsonl"
    path.write_text(path.read_text().replace('"update": 2,', '"update": 902,').replace('"samples": 40,', '"samples": 940,'))
    with pytest.warns(
        UserWarning, match=r"2 lines are damaged \(line 2: update 902 is out of order; line 4: samples 940 is out of order\)"
    ):
        record_of(tmp_path, 1, clock=Clock(samples=60, updates=6))
    assert updates_of(path) == [1, 3, 5, 6, 7]


def test_lines_that_went_without_a_trace_are_told(tmp_path):
    record_of(tmp_path, 9)
    path = tmp_path / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[4]]))
    with pytest.warns(UserWarning, match=r"record.jsonl: lines of updates 4, 6 to 8 are missing; the record goes on without them"):
        record_of(tmp_path, 1, clock=Clock(samples=80, updates=8))
    assert updates_of(path) == [1, 2, 3, 5, 9]


def test_a_record_that_can_not_be_read(tmp_path):
    (tmp_path / "record.jsonl").mkdir()
    with pytest.raises(InputError, match=r"record.jsonl: can't be read: Is a directory; check its permissions, or restore a copy"):
        record_of(tmp_path, 1, clock=Clock(samples=80, updates=8))


SHORT = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 20, "batch.micro_batch": 32})


def stopped(tmp_path):
    """A run as it is after 15 of 20 updates, and the weights in which it ends."""
    fit("digits/mlp", SHORT, out=tmp_path, quiet=True, tensorboard=False, evaluate_every=5 * 32 / 1297, keep_checkpoints=True)
    end = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    (tmp_path / "update-000000015.pt").replace(tmp_path / "last.pt")
    (tmp_path / "result.json").unlink()
    return end


def resume(tmp_path):
    fit("digits/mlp", SHORT, out=tmp_path, quiet=True, tensorboard=False, evaluate_every=5 * 32 / 1297, resume=True)
    return torch.load(tmp_path / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("how", ["missing", "empty", "no head"])
def test_a_record_without_its_head_is_rebuilt_from_the_checkpoint(tmp_path, how):
    end, path = stopped(tmp_path), tmp_path / "record.jsonl"
    _, rest = path.read_bytes().split(b"\n", 1)
    path.unlink()
    if how != "missing":
        path.write_bytes(rest if how == "no head" else b"")
    with pytest.warns(UserWarning, match=r"its first line is lost, or the whole file; it is built anew from the checkpoint of update 15"):
        assert all(torch.equal(value, end[name]) for name, value in resume(tmp_path).items())
    start, *others = read_record(path)
    assert (start["kind"], start["rebuilt_at_update"], start["task"], start["micro_batch"]) == ("start", 15, "digits/mlp", 32)
    assert Recipe.from_saved(start["recipe"]) == SHORT
    known = [line["update"] for line in others if line["kind"] == "update"]
    assert known == list(range(1 if how == "no head" else 16, 21))
    assert "one run at 32" in write_report(tmp_path).read_text()


def test_a_recipe_that_went_is_written_anew(tmp_path):
    stopped(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    resume(tmp_path)
    assert Recipe.load(tmp_path / "recipe.toml") == SHORT


def test_a_recipe_of_another_run_is_kept_and_told(tmp_path):
    stopped(tmp_path)
    (tmp_path / "recipe.toml").write_text(SHORT.replace({"optimizer.lr": 7.0}).to_toml())
    with pytest.warns(UserWarning, match=r"recipe.toml: is not the run's \(optimizer.lr: 0.1 here, 7.0 there\); it is written anew"):
        resume(tmp_path)
    assert Recipe.load(tmp_path / "recipe.toml") == SHORT


FILLS_UP = """
import sys
import torch
from tests.limited_files import limited_files
from bigbatch.cli.app import main

torch.set_num_threads(int(sys.argv[2]))
size = int(sys.argv[1])
sys.argv = ["bigbatch", *sys.argv[3:]]
with limited_files(size):
    main()
"""


@pytest.mark.bit_for_bit
@pytest.mark.slow
def test_a_disk_that_fills_up_with_the_record(tmp_path):
    """One line, exit code 2, and the run goes on from its checkpoint to the same end; far more lines than one buffer holds."""
    settings = ["--set", "model.hidden=1", "--set", "batch.micro_batch=32", "--set", "budget.epochs=30", "--quiet"]
    command = ["train", "digits/mlp", *settings, "--save-every", "1000", "--out"]
    program = [sys.executable, "-c", FILLS_UP, "60000", str(torch.get_num_threads())]
    done = subprocess.run([*program, *command, str(tmp_path / "run")], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"error: can't write {tmp_path}/run/record.jsonl: File too large; free some space, then continue with --resume"
    for where in ("run", "whole"):
        more = ["--resume"] if where == "run" else []
        program[3] = str(2**30)
        subprocess.run([*program, *command, str(tmp_path / where), *more], timeout=LIMIT_S, check=True)
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("run", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert updates_of(tmp_path / "run" / "record.jsonl") == list(range(1, 1217))


def test_a_disk_that_is_full_before_the_lines_are_flushed(tmp_path):
    """More than one buffer holds: the write fails where no error is expected yet, and is told where all workers meet."""
    record = Record(tmp_path, Clock(), tensorboard=False).open()
    with (
        limited_files(1000),
        pytest.raises(OutputError, match=r"record.jsonl: File too large; free some space, then continue with --resume"),
    ):
        write_many(record)
    record.close()


def test_a_disk_that_fills_up_under_two_workers(tmp_path):
    """All of them end, at the first worker's next flush, and one line is said."""
    train = [sys.executable, "-m", "bigbatch", "train", "digits/mlp", "--workers", "2", "--out", "run", "--quiet", "--save-every", "1000"]
    small = ["--set", "model.hidden=8", "--set", "budget.epochs=1000"]
    limited = ["sh", "-c", 'ulimit -f 400; exec "$@"', "sh", *train, *small]  # 200 or 400 kB: more than a checkpoint, less than the record
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line) == (
        2,
        "error: can't write run/record.jsonl: File too large; free some space, then continue with --resume",
    )


def write_many(record):
    for i in range(1, 1000):
        record.weight_distance(Clock(10 * i, i), 1.0)
    record.write_out()
