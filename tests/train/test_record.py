"""The record: one line per update, cut where a run resumes, readable after a kill, and loud when the disk is full."""

import json
import math

import pytest
import torch

from bigbatch import Diverged, Recipe
from bigbatch.core.checks import OutputError
from bigbatch.core.clock import Clock
from bigbatch.train.evaluate import Evaluation
from bigbatch.train.record import Record, environment, read_record


def record_of(folder, updates, clock=None):
    clock = clock or Clock()
    record = Record(folder, clock, tensorboard=False)
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
        record = Record(tmp_path, Clock(), tensorboard=False)
        record.start(Recipe.named("digits/mlp"), task="digits/mlp")
        record.close()
    assert [line["kind"] for line in read_record(tmp_path / "record.jsonl")] == ["start"]


def test_closing_lines_are_written_again_by_a_resumed_run(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False)
    clock = Clock().after(10)
    record.update(clock, torch.tensor(1.0), lr=0.1, num_samples=10)
    record.evaluation(clock, "validation", Evaluation(1.0, 0.5, 4))
    record.evaluation(clock, "test", Evaluation(1.0, 0.5, 4))
    record.end(clock)
    Record(tmp_path, clock, tensorboard=False).close()
    lines = read_record(tmp_path / "record.jsonl")
    assert [(line["kind"], line.get("split")) for line in lines] == [("update", None), ("evaluation", "validation")]


def test_half_a_line_is_dropped(tmp_path):
    record_of(tmp_path, 3)
    path = tmp_path / "record.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["update"] for line in read_record(path)] == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_ends_it(tmp_path, bad):
    record = Record(tmp_path, Clock(), tensorboard=False)
    for i, loss in enumerate([1.0, bad, bad], start=1):
        record.update(Clock(10 * i, i), torch.tensor(loss), lr=0.1, num_samples=10)
    with pytest.raises(Diverged, match=f"loss = {bad} at update 2 \\(learning rate 0.1\\): must be finite"):
        record.flush()
    lines = read_record(tmp_path / "record.jsonl")
    assert [line["kind"] for line in lines] == ["update", "diverged"]
    assert all(not isinstance(v, float) or math.isfinite(v) for line in lines for v in line.values())  # strict JSON


def test_an_evaluation_that_is_not_finite(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False)
    with pytest.raises(Diverged, match="validation loss = nan after update 3: must be finite"):
        record.evaluation(Clock(30, 3), "validation", Evaluation(math.nan, 0.1, 4))
    assert json.loads((tmp_path / "record.jsonl").read_text())["kind"] == "diverged"


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path):
    record = Record(tmp_path, Clock(), tensorboard=False)
    record._file.close()
    record._file = open("/dev/full", "a")  # noqa: SIM115 every write to it fails with "No space left on device"
    record.update(Clock(10, 1), torch.tensor(1.0), lr=0.1, num_samples=10)
    with pytest.raises(OutputError, match="can't write /dev/full: No space left on device; free some space, then continue with --resume"):
        record.flush()
    record.close()


def test_the_environment_names_no_host():
    import platform

    assert platform.node() not in json.dumps(environment())
