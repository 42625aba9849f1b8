"""Real runs in every state below one folder, and what is done to their files."""

import json
import math
import os
import shutil
import warnings

import pytest
from tests.loss_task import RECIPE as NATS_RECIPE
from tests.loss_task import Nats

from bigbatch import Diverged, Recipe, UserError, fit
from bigbatch.core.storage.folder_lock import OWNER, Owner, owned
from bigbatch.study.all_runs.runs import natural, runs
from bigbatch.study.comparison.scale import scale
from bigbatch.study.critical.study import Trial
from bigbatch.train.state.result import Result

RECIPE = Recipe.named("digits/mlp").replace(
    {"budget.epochs": None, "budget.updates": 12, "batch.micro_batch": 32, "model.hidden": 8, "optimizer.lr": 0.05}
)
QUIET = {"quiet": True, "tensorboard": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, one that was killed after 5 of 12 updates, and one that diverged."""
    root = tmp_path_factory.mktemp("made")
    fit("digits/mlp", RECIPE, out=root / "finished", **QUIET)
    fit("digits/mlp", RECIPE, out=root / "stopped", evaluate_every=32 / 1297, keep_checkpoints=True, **QUIET)
    shutil.copy(root / "stopped" / "update-000000005.pt", root / "stopped" / "last.pt")
    for path in [*(root / "stopped").glob("update-*"), root / "stopped" / "result.json"]:
        path.unlink()
    keep_lines(root / "stopped" / "record.jsonl", lambda line: line["kind"] != "end" and line.get("split") != "test")
    (root / "stopped" / OWNER).write_text(json.dumps(Owner.this_process()._asdict()))
    with pytest.raises(Diverged):
        fit("digits/mlp", RECIPE.replace({"optimizer.lr": 1e30}), out=root / "diverged", **QUIET)
    return root


def keep_lines(path, wanted):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if wanted(json.loads(line))))


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def row(folder, path="."):
    (found,) = (run for run in listed(folder).runs if run.path == path)
    return found


def listed(folder):
    """Nothing is warned about, and nothing written."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = runs(folder)
        json.dumps(table.to_dict(), allow_nan=False)
        assert len(table.to_csv().splitlines()) == 1 + len(table.runs)
        assert len(table.table(80).rows) == len(table.runs)
        list(table.words())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return table


def test_a_finished_run_has_what_its_result_has(root):
    found, result = row(root / "finished"), Result.load(root / "finished" / "result.json")
    assert (found.state, found.note, found.task) == ("finished", "", "digits/mlp")
    assert (found.score, found.split, found.updates, found.seconds) == (result.test_score, "test", 12, result.train_s)
    assert found.fields == RECIPE.to_flat_dict()


def test_without_a_test_score_it_is_that_of_validation(root):
    path = root / "finished" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test_score": None, "validation_score": 0.25}))
    found = row(root / "finished")
    assert (found.score, found.split, found.state) == (0.25, "validation", "finished")


def test_a_stopped_run_stands_at_its_checkpoint(root):
    found = row(root / "stopped")
    lines = [json.loads(line) for line in (root / "stopped" / "record.jsonl").read_text().splitlines()]
    assert (found.state, found.note, found.updates, found.split) == ("stopped", "", 5, "validation")
    assert found.score == [line["score"] for line in lines if line["kind"] == "evaluation"][-1]
    assert 0 < found.seconds < 60


def test_a_run_that_is_held_is_running(root):
    with owned(root / "stopped"):
        found = row(root / "stopped")
    assert (found.state, found.updates, found.seconds) == ("running", 12, None)  # of the record, which is ahead of the checkpoint
    assert row(root / "stopped").state == "stopped"


def test_a_diverged_run(root):
    found = row(root / "diverged")
    assert (found.state, found.note, found.seconds) == ("diverged", "", None)
    assert 1 < found.updates < 12
    assert found.fields["optimizer.lr"] == 1e30


def test_a_diverged_run_of_a_study(tmp_path):
    scale("digits/mlp", to=64, rule="none", seeds=1, max_seeds=1, recipe=RECIPE.replace({"optimizer.lr": 1e30}), out=tmp_path, quiet=True)
    table = listed(tmp_path)
    assert [(run.path, run.state) for run in table.runs] == [
        ("batch-64-none/seed-0", "diverged"),
        ("batch-64-only/seed-0", "diverged"),
        ("reference/seed-0", "diverged"),
    ]
    assert all(run.updates < 12 for run in table.runs)  # where they did, not where they would have ended
    assert table.differing == ("batch.global_batch", "budget.updates")


def test_runs_at_any_depth_in_the_order_of_numbers(root):
    for seed in (9, 10):
        shutil.copytree(root / "finished", root / "a" / "b" / f"seed-{seed}")
    shutil.copytree(root / "finished", root / ".hidden" / "run")
    (root / "a" / "empty").mkdir()
    (root / "again").symlink_to(root / "a")
    assert [run.path for run in listed(root).runs] == ["a/b/seed-9", "a/b/seed-10", "diverged", "finished", "stopped"]
    assert natural("x") < natural("x1") < natural("x2b") < natural("x10")


DAMAGE = {
    "result": ("finished", "result.json", b"{", "result.json: is damaged: not JSON"),
    "recipe": ("finished", "recipe.toml", b"\xff", "recipe.toml: is damaged: not UTF-8"),
    "checkpoint": ("stopped", "last.pt", b"PK", "last.pt: is truncated or damaged"),
    "no checkpoint": ("stopped", "last.pt", None, "holds no checkpoint (last.pt) to resume from"),
    "record": ("stopped", "record.jsonl", b"\0\n[]\n", "record.jsonl: 2 lines are damaged"),
}


@pytest.mark.parametrize(("run", "file", "content", "why"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_is_a_row_that_says_so(root, run, file, content, why):
    path = root / run / file
    path.unlink() if content is None else path.write_bytes(content)
    found = row(root, run)
    assert found.state == "damaged"
    assert why in found.note
    assert "\n" not in found.note
    assert len(listed(root).runs) == 3
    assert found.fields == RECIPE.to_flat_dict()  # also where recipe.toml is damaged: the record has it too
    if file == "recipe.toml":
        assert found.score is not None


def test_a_finished_run_keeps_its_row_without_the_files_that_it_no_longer_needs(root):
    for name in ("last.pt", "best.pt", "recipe.toml", ".lock"):
        (root / "finished" / name).unlink()
    found = row(root, "finished")
    assert (found.state, found.fields) == ("finished", RECIPE.to_flat_dict())


def test_where_no_file_has_the_recipe_that_is_said(root):
    for name in ("record.jsonl", "recipe.toml"):
        (root / "finished" / name).unlink()
    found = row(root, "finished")
    assert (found.state, found.fields, found.task) == ("damaged", {}, "digits/mlp")
    assert found.note.endswith("holds no recipe (recipe.toml, record.jsonl)")
    assert found.score is not None


def test_the_line_that_a_kill_left_unfinished_is_no_damage(root):
    with (root / "stopped" / "record.jsonl").open("a") as file:
        file.write('{"kind": "upd')
    assert row(root, "stopped").state == "stopped"


@pytest.mark.parametrize("name", ["result.json", "last.pt", "record.jsonl", "recipe.toml", "runs.jsonl", "critical.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]\n", b"\0" * 999, b'{"kind": "x"}\n', b"a = 1"])
def test_files_of_other_programs_are_no_runs(tmp_path, name, content):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_bytes(content)
    assert listed(tmp_path).runs == ()


def test_pipes_folders_and_names_that_are_no_text(root):
    os.mkfifo(root / "stopped" / "result.json")
    (root / "finished" / "runs.jsonl").mkdir()
    (root / "diverged").rename(root / os.fsdecode(b"[bold]\xff\n\x1b[31m"))
    assert [run.path for run in listed(root).runs] == ["[bold]\ufffd\ufffd\ufffd[31m", "finished", "stopped"]


def test_a_folder_that_can_not_be_listed_is_told(root, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", str(root / "closed")))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    assert list(runs(root).words()) == [f"may not be read: {root / 'closed'}"]


TRIAL = Trial(lr=0.05, seed=0, updates=9, reached=True, diverged=False, best_score=0.75, train_s=1.5)


def write_trials(folder, *lines):
    (folder / "runs.jsonl").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_the_runs_of_a_critical_study_are_lines(tmp_path):
    good = {**TRIAL._asdict(), "target": 0.7, "recipe": RECIPE.to_dict()}
    died = {**good, "diverged": True, "best_score": 0.0, "train_s": None, "recipe": RECIPE.replace({"optimizer.lr": 9.0}).to_dict()}
    write_trials(tmp_path, good, died, '{"lr": \n', {**good, "updates": "x"}, {**good, "recipe": {}})
    found = listed(tmp_path).runs
    assert [(run.path, run.state, run.score, run.split, run.updates, run.seconds) for run in found[:2]] == [
        ("runs.jsonl:1", "finished", 0.75, "validation", 9, 1.5),
        ("runs.jsonl:2", "diverged", None, "", 9, None),
    ]
    assert [(run.path, run.state) for run in found[2:]] == [(f"runs.jsonl:{line}", "damaged") for line in (3, 4, 5)]
    assert "line 3: not JSON" in found[2].note
    assert "line 4: updates = 'x': input should be a valid integer" in found[3].note
    assert "line 5: " in found[4].note


def test_a_grid_has_test_scores(tmp_path):
    line = {"key": {}, "seed": 0, "recipe": RECIPE.to_dict(), "diverged": False, "updates": 3, "train_s": 0.5}
    write_trials(tmp_path, {**line, "test_score": 0.5, "validation_score": 0.25}, {**line, "test_score": None, "validation_score": 0.25})
    assert [(run.score, run.split) for run in listed(tmp_path).runs] == [(0.5, "test"), (0.25, "validation")]


def test_a_study_of_which_nothing_can_be_read_is_still_a_study(tmp_path):
    write_trials(tmp_path, "\0\n")
    (tmp_path / "critical.json").write_text("{}")
    assert [(run.path, run.state) for run in listed(tmp_path).runs] == [("runs.jsonl:1", "damaged")]


def test_scores_that_are_no_numbers_are_absent(root):
    path = root / "finished" / "result.json"
    path.write_text(Result(**{**json.loads(path.read_text()), "test_score": math.nan, "validation_score": math.nan}).to_json())
    assert row(root, "finished").score is None


@pytest.mark.parametrize("name", ["absent", "file", "x" * 300])
def test_what_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder; give one with runs in it|File name too long"):
        runs(tmp_path / name)


def test_scores_are_shown_as_the_metric_says(root, tmp_path):
    """Of an own task, whose code is not imported: its record names the metric."""
    fit(Nats(), NATS_RECIPE, out=tmp_path / "nats" / "own", **QUIET)
    table = listed(tmp_path / "nats").table(100)
    score = row(tmp_path / "nats", "own").score
    assert "loss, nats" in table.columns
    assert f"{score:.3f}" in table.rows[0]
    assert listed(tmp_path / "nats").to_dict()["metric"]["better"] == "lower"
    shutil.copytree(tmp_path / "nats" / "own", root / "own")
    cells = dict(zip((run.path for run in listed(root).runs), (cells[-4] for cells in listed(root).table(200).rows), strict=True))
    assert cells["own"] == f"{score:.3f} nats"
    assert cells["finished"].endswith(" %")
