"""TensorBoard's events: as TensorBoard reads them, and never the end of a run."""

import os
import subprocess
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.limited_files import limited_files

from bigbatch import Recipe, fit
from bigbatch.train.state.tensorboard import Events

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def test_tensorboard_reads_them_and_drops_what_an_earlier_attempt_wrote_later(tmp_path):
    for start, updates in ((0, (1, 2, 3)), (2, (3, 4))):
        events = Events(tmp_path, start)
        for i in updates:
            events.add_scalar("train/loss", i + start / 10, i)
        events.flush()
        events.close()
        events.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2)]


def test_a_run_s_own(tmp_path):
    before = threading.active_count()
    fit("digits/mlp", RECIPE, out=tmp_path, quiet=True)
    assert scalars(tmp_path / "tensorboard", "test/score")[0][0] == 41
    assert scalars(tmp_path / "tensorboard", "train/loss")[-1][0] == 41
    assert threading.active_count() == before


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.warns(
        UserWarning, match=r"tensorboard: can't write TensorBoard's events: File exists; the run goes on without them"
    ) as told:
        result = fit("digits/mlp", RECIPE, out=tmp_path, quiet=True)
    assert result.updates == 41
    assert len(told) == 1


def test_a_disk_that_fills_up_is_told_once(tmp_path):
    with limited_files(200), pytest.warns(UserWarning, match="can't write TensorBoard's events: File too large; the run goes on") as told:
        write_many(Events(tmp_path, 0))
    assert len(told) == 1


def write_many(events):
    for i in range(1000):
        events.add_scalar("train/loss", 1.0, i)
    events.flush()
    events.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system; the test above covers the same path")
def test_a_file_system_that_is_really_full(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], check=True)
    try:
        (folder / "full").write_bytes(b"0" * 4096)
        with pytest.warns(UserWarning, match="can't write TensorBoard's events: No space left on device") as told:
            result = fit("digits/mlp", RECIPE, out=tmp_path, quiet=True)
        assert result.updates == 41
        assert len(told) == 1
    finally:
        subprocess.run(["umount", str(folder)], check=True)
