"""When the batch doubles, by hand-worked numbers, and what that saves."""

import json

import pytest
from tests.cli.command import bigbatch

from bigbatch import Recipe
from bigbatch.core.checks import UserError
from bigbatch.study.branches.batch_schedule import batch_schedule

RECIPE = Recipe.from_dict(
    {
        "task": "mine",
        "num_train_samples": 50_000,
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.1},
        "batch": {"global_batch": 64},
        "budget": {"samples": 100_000},
    }
)
SECONDS = {"per_update": 0.01, "per_sample": 0.001}


def study(*points, batch=64, seconds=SECONDS, lr="sqrt", lower=10.0, largest=16):
    branches = [{"global_batch": k * batch} for k in (1, 1, largest)]
    rows = [
        {"samples": samples, "critical_batch": {"value": value, "lower": lower, "upper": None}, "branches": branches}
        for samples, value in points
    ]
    return {"global_batch": batch, "points": rows, "seconds": seconds, "lr": lr}


def test_the_batch_doubles_where_the_critical_batch_reaches_the_next():
    planned = batch_schedule(RECIPE, study((10_000, 200), (40_000, 800)), workers=1)
    # C rises by 0.02 a sample to 200, then by 0.02 a sample from there: 128 at 6,400, 256 at 12,800, 512 at 25,600, 1,024 never
    assert planned.steps == ((6400, 128), (12_800, 256), (25_600, 512))
    assert planned.updates == 100 + 50 + 50 + 146
    assert planned.recipe.batch.rule.kind == "schedule"
    assert planned.recipe.batch.rule.lr == "sqrt"
    after, before = planned.seconds
    assert after == pytest.approx(346 * 0.01 + 100)
    assert before == pytest.approx(1563 * 0.01 + 100)
    assert planned.sentence().startswith(
        "346 updates in place of 1,563, 78 % fewer; with 1 worker 103 s in place of 116 s, without exchange"
    )
    four = batch_schedule(RECIPE, study((10_000, 200), (40_000, 800)), workers=4)
    assert four.seconds[0] == pytest.approx(346 * 0.01 + 25, rel=1e-3)


def test_what_samples_are_worth_is_the_trade_off_s():
    planned = batch_schedule(RECIPE, study((1, 128)))
    # from the second sample on C = 128: the batch doubles at once, and 128 samples are worth 128 (1 + 64/128) / (1 + 1) = 96
    assert planned.steps == ((1, 128),)
    assert planned.worth == pytest.approx(0.75, rel=2e-3)


def test_a_critical_batch_that_falls_later_does_not_end_the_growth_and_no_bound_is_the_largest_tried():
    assert batch_schedule(RECIPE, study((10_000, 200), (40_000, 100))).steps == ((6400, 128),)
    assert batch_schedule(RECIPE, study((10_240, None))).steps == tuple((10 * b, b) for b in (128, 256, 512, 1024))
    assert batch_schedule(RECIPE, study((10_240, None)), largest=300).steps == ((1280, 128), (2560, 256))


def test_branches_of_one_window_are_taken_as_they_are():
    assert batch_schedule(RECIPE, study((10_000, 200), lower=None)).steps == ((6400, 128),)


def test_a_small_critical_batch_leaves_the_recipe_as_it_is():
    planned = batch_schedule(RECIPE, study((10_000, 100)))
    assert (planned.steps, planned.recipe) == ((), RECIPE)
    assert planned.sentence() == "the batch stays at 64: the critical batch never reaches twice that"
    assert planned.worth == 1


def test_the_rate_goes_with_the_batch_as_that_of_the_branches():
    assert batch_schedule(RECIPE, study((10_000, 200), lr="linear")).recipe.batch.rule.lr == "linear"


def test_no_batch_is_larger_than_what_a_branch_tried():
    assert batch_schedule(RECIPE, study((10_000, 2000), largest=4)).steps[-1][1] == 256
    assert batch_schedule(RECIPE, study((10_000, 2000), largest=4), largest=4096).steps[-1][1] == 256


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((RECIPE, study((10, 200), batch=32)), "branches of a run at a batch of 32; the recipe has 64"),
        ((RECIPE, {"points": []}), "is no study of branches"),
        ((RECIPE, study()), "no branch of this study tells the critical batch"),
        ((RECIPE, study((10, 200), lower=0.0)), "no branch of this study tells the critical batch"),
        ((RECIPE.replace({"batch.rule.kind": "seesaw"}), study((10, 200))), "sets its batch already"),
    ],
)
def test_bad_input_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        batch_schedule(*given)


def test_the_command_prints_and_writes_it(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.to_toml())
    (tmp_path / "branches.json").write_text(json.dumps(study((10_000, 200), (40_000, 800))))
    command = ["plan", "recipe.toml", "--batch-schedule", "branches.json", "--workers", "8", "--out", "new.toml"]
    done = bigbatch(*command, cwd=tmp_path)
    for text in ("from sample", "25,600", "512", "2.83", "346 updates in place of 1,563", "with 8 workers"):
        assert text in done.stdout, text
    assert Recipe.load(tmp_path / "new.toml").batch.rule.steps == ((6400, 128), (12_800, 256), (25_600, 512))
    wrong = bigbatch("plan", "recipe.toml", cwd=tmp_path, expect=2)
    assert wrong.stderr.startswith("error: --global-batch and --batch-schedule: give one of the two")
    (tmp_path / "branches.json").write_text("[]")
    assert "--batch-schedule" in bigbatch(*command, cwd=tmp_path, expect=2).stderr
