"""A finished run's result: refused with words where it is damaged, read where a newer version wrote it."""

import json
import math

import pytest

from bigbatch import Recipe, fit
from bigbatch.core.checks import CheckpointError, InputError, OutputError, RecipeError
from bigbatch.train.state.result import Result

SHORT = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 5, "batch.micro_batch": 32})
QUIET = {"quiet": True, "tensorboard": False}
RESULT = Result("t", updates=3, samples=96, test_score=0.5, train_s=2)


def test_comes_back(tmp_path):
    (tmp_path / "result.json").write_text(RESULT.to_json())
    again = Result.load(tmp_path / "result.json")
    assert (again.task, again.updates, again.test_score, again.train_s) == ("t", 3, 0.5, 2)
    assert math.isnan(again.validation_score)


def test_of_a_newer_version(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({**json.loads(RESULT.to_json()), "energy_j": 12.0}))
    assert Result.load(tmp_path / "result.json").updates == 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ('{"task": "t", "upd', r"not JSON: Unterminated string starting at \(column 15\)"),
        ("[]", "holds a list where an object should be"),
        ('{"task": "t", "samples": 96}', "no updates"),
        ('{"task": "t", "updates": "3", "samples": 96}', "updates = '3': input should be a valid integer"),
        ('{"task": "t", "updates": -3, "samples": 96}', "updates = -3: must not be negative"),
        ('{"task": "t", "updates": 3, "samples": 96, "reached": 1}', "reached = 1: input should be a valid boolean"),
        ('{"task": "t", "updates": 3, "samples": 96, "test_score": [0.5]}', r"test_score = \[0.5\]: input should be a valid number"),
    ],
)
def test_damaged(tmp_path, content, why):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=rf"result.json: is damaged: {why}.*; restore a copy$"):
        Result.load(tmp_path / "result.json")
    (tmp_path / "last.pt").touch()
    with pytest.raises(InputError, match=r"; delete result.json and continue with --resume: the end of the run is made again$"):
        Result.load(tmp_path / "result.json")


def test_what_the_error_says_to_do_brings_the_result_back(tmp_path):
    first = fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="delete result.json and continue with --resume"):
        fit("digits/mlp", SHORT, out=tmp_path, resume=True, **QUIET)
    (tmp_path / "result.json").unlink()
    again = fit("digits/mlp", SHORT, out=tmp_path, resume=True, **QUIET)
    assert (again.updates, again.test_score, again.test_loss) == (first.updates, first.test_score, first.test_loss)


def test_a_recipe_that_is_missing_beside_a_result_comes_from_the_checkpoint(tmp_path):
    first = fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(CheckpointError, match="holds a finished run of another recipe"):
        fit("digits/mlp", SHORT.replace({"seed": 3}), out=tmp_path, resume=True, **QUIET)
    assert fit("digits/mlp", SHORT, out=tmp_path, resume=True, **QUIET) == first
    assert Recipe.load(tmp_path / "recipe.toml") == SHORT


def test_a_recipe_that_is_damaged_beside_a_result_is_kept_and_written_anew(tmp_path):
    first = fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
    (tmp_path / "recipe.toml").write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match=r"recipe.toml: not TOML.*; it is written anew, and the file as it was is recipe.toml.damaged-1"):
        assert fit("digits/mlp", SHORT, out=tmp_path, resume=True, **QUIET) == first
    assert Recipe.load(tmp_path / "recipe.toml") == SHORT
    assert (tmp_path / "recipe.toml.damaged-1").read_bytes() == b"\0" * 100


def test_a_result_that_no_file_tells_the_recipe_of(tmp_path):
    fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
    (tmp_path / "recipe.toml").unlink()
    (tmp_path / "last.pt").unlink()
    with pytest.raises(RecipeError, match=r"recipe.toml: can't be read: No such file or directory; check the path"):
        fit("digits/mlp", SHORT, out=tmp_path, resume=True, **QUIET)


def test_the_file_of_a_job_that_is_damaged_is_another_job_s(tmp_path, monkeypatch):
    fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
    (tmp_path / "job").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("BIGBATCH_JOB", "a-job")
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume"):
        fit("digits/mlp", SHORT, out=tmp_path, **QUIET)
