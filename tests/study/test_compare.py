"""The main job: which runs it makes, that it can be interrupted, and what it concludes."""

import json

import pytest

from bigbatch import Interrupted, Recipe, UserError, scale
from bigbatch.study import compare
from bigbatch.study.compare import Arm, Comparison, rows_of
from bigbatch.train import Result

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def compare_digits(out, **kwargs):
    return scale("digits/mlp", **{"to": 64, "rule": "linear", "seeds": 2, "recipe": RECIPE, "out": out, "quiet": True, **kwargs})


def test_three_arms_over_seeds_with_every_record(tmp_path):
    comparison = compare_digits(tmp_path)
    assert [arm.name for arm in comparison.arms] == ["reference", "batch only", "linear"]
    reference, only, planned = (arm.recipe for arm in comparison.arms)
    assert reference == RECIPE
    assert only.differences(reference) == ["batch.global_batch: 64 here, 32 there"]
    assert planned == comparison.plan.recipe
    for arm in comparison.arms:
        assert len(arm.results) == 2
        assert arm.results[0].test_loss != arm.results[1].test_loss  # the seeds differ
        for seed in (0, 1):
            assert (tmp_path / arm.folder / f"seed-{seed}" / "record.jsonl").exists()
    stored = json.loads((tmp_path / "batch-64-linear.comparison.json").read_text())
    assert stored == json.loads(json.dumps(comparison.to_dict()))


def test_finished_runs_are_not_repeated_and_the_reference_is_shared(tmp_path, monkeypatch):
    first, runs = compare_digits(tmp_path), []
    original = compare.fit
    monkeypatch.setattr(compare, "fit", lambda *args, **kwargs: runs.append(kwargs["out"]) or original(*args, **kwargs))
    monkeypatch.setattr("bigbatch.train.loop.accumulate_gradients", lambda *args, **kwargs: pytest.fail("a finished run was trained again"))
    again = compare_digits(tmp_path)
    assert again.to_dict() == first.to_dict()
    assert len(runs) == 6
    monkeypatch.undo()
    other = compare_digits(tmp_path, to=128)
    assert other.arms[0].results == first.arms[0].results


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    straight = compare_digits(tmp_path / "straight")
    original, calls = compare.fit, []

    def stops(*args, **kwargs):
        calls.append(kwargs["out"])
        if len(calls) == 4:
            raise Interrupted("stopped")
        return original(*args, **kwargs)

    monkeypatch.setattr(compare, "fit", stops)
    with pytest.raises(Interrupted):
        compare_digits(tmp_path / "broken")
    monkeypatch.undo()
    resumed = compare_digits(tmp_path / "broken")
    assert [arm.scores for arm in resumed.arms] == [arm.scores for arm in straight.arms]


def test_diverged_runs_are_counted_and_kept(tmp_path):
    comparison = compare_digits(tmp_path, to=1297, recipe=RECIPE.replace({"optimizer.lr": 1e6, "schedule.warmup.kind": "none"}))
    assert all(arm.num_diverged == 2 for arm in comparison.arms[:1])
    assert comparison.verdict(comparison.arms[2]).outcome == "undecided"
    assert comparison.sentence(comparison.arms[2]).endswith("can't be judged: 2 of 2 runs of the reference diverged; tune it")
    assert next(rows_of(comparison.to_dict())).diverged == "2 of 2"
    again = compare_digits(tmp_path, to=1297, recipe=RECIPE.replace({"optimizer.lr": 1e6, "schedule.warmup.kind": "none"}))
    assert again.arms[0].num_diverged == 2


def comparison_of(scores):
    from bigbatch import plan

    def arm(name, values):
        results = tuple(Result("t", 1, 1, test_score=v / 100, train_s=2.0, samples_per_s=3.0, diverged=v == 0) for v in values)
        return Arm(name, name, RECIPE, results)

    arms = tuple(arm(name, values) for name, values in zip(("reference", "batch only", "linear"), scores, strict=True))
    return Comparison("t", "accuracy", plan(RECIPE, global_batch=64, rule="linear"), arms, 0.5)


def test_sentences():
    comparison = comparison_of([[90, 90.1, 90.2], [80, 80.1, 80.2], [90, 90.1, 90.3]])
    assert comparison.sentence(comparison.arms[1]).startswith("batch only at 32: did not hold: -10.00 points of accuracy [-10.17, -9.83]")
    assert comparison.sentence(comparison.arms[2]).startswith("linear at 32: held: +0.03 points of accuracy [")
    comparison = comparison_of([[90, 90.1], [90], [90, 0]])
    assert comparison.sentence(comparison.arms[1]).endswith("one run an arm gives no interval")
    assert comparison.sentence(comparison.arms[2]) == "linear at 32: did not hold: 1 of 2 runs diverged"


def test_the_table():
    reference, only, planned = rows_of(comparison_of([[90, 91], [80, 80], [0, 0]]).to_dict())
    assert reference == ("reference", "32", "90.50 ± 0.71 %", "1", "3", "2.0", "0 of 2")
    assert only.score == "80.00 ± 0.00 %"
    assert (planned.score, planned.diverged) == ("-", "2 of 2")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"to": 32}, "to = 32: is the reference's own batch"),
        ({"to": 0}, "global_batch = 0: must be a finite number above zero"),
        ({"to": 2000}, "batch.global_batch = 2,000: is larger than the training set of 1,297 samples"),
        ({"seeds": 0}, "seeds = 0: must be a finite number above zero"),
        ({"margin": -1}, "margin = -1: must be a finite number above zero"),
        ({"rule": "cubic"}, "unknown rule 'cubic'"),
    ],
)
def test_refuses_before_any_run(tmp_path, kwargs, message):
    with pytest.raises(UserError, match=message):
        compare_digits(tmp_path / "out", **kwargs)
    assert not (tmp_path / "out").exists()


def test_another_reference_in_the_same_folder_is_refused(tmp_path):
    compare_digits(tmp_path)
    with pytest.raises(UserError, match="holds a finished run of another recipe \\(optimizer.lr"):
        compare_digits(tmp_path, recipe=RECIPE.replace({"optimizer.lr": 0.2}))
