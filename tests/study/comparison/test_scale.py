"""The main job: which runs it makes, that it can be interrupted, and what it concludes."""

import json
import math

import pytest

from bigbatch import Interrupted, Recipe, UserError, scale
from bigbatch.runner import FunctionRunner
from bigbatch.runner import task as task_runner
from bigbatch.study.comparison.comparison import Arm, Comparison
from bigbatch.study.comparison.stored import rows_of
from bigbatch.study.comparison.verdict import Design
from bigbatch.train import Result

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def compare_digits(out, **kwargs):
    return scale(
        "digits/mlp", **{"to": 64, "rule": "linear", "seeds": 2, "max_seeds": 2, "recipe": RECIPE, "out": out, "quiet": True, **kwargs}
    )


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
    original = task_runner.fit
    monkeypatch.setattr(task_runner, "fit", lambda *args, **kwargs: runs.append(kwargs["out"]) or original(*args, **kwargs))
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
    original, calls = task_runner.fit, []

    def stops(*args, **kwargs):
        calls.append(kwargs["out"])
        if len(calls) == 4:
            raise Interrupted("stopped")
        return original(*args, **kwargs)

    monkeypatch.setattr(task_runner, "fit", stops)
    with pytest.raises(Interrupted):
        compare_digits(tmp_path / "broken")
    monkeypatch.undo()
    resumed = compare_digits(tmp_path / "broken")
    assert [arm.scores for arm in resumed.arms] == [arm.scores for arm in straight.arms]


def test_diverged_runs_are_counted_and_kept(tmp_path):
    comparison = compare_digits(tmp_path, to=1297, recipe=RECIPE.replace({"optimizer.lr": 1e6, "schedule.warmup.kind": "none"}))
    assert all(arm.num_diverged == 2 for arm in comparison.arms[:1])
    assert comparison.verdict(comparison.arms[2]).outcome == "undecided"
    assert comparison.sentence(comparison.arms[2]).endswith(
        "can't be judged: 2 of 2 (100 %; 15.8 to 100 % at 95 %) runs of the reference diverged; tune it"
    )
    assert next(rows_of(comparison.to_dict())).diverged == "2 of 2"
    again = compare_digits(tmp_path, to=1297, recipe=RECIPE.replace({"optimizer.lr": 1e6, "schedule.warmup.kind": "none"}))
    assert again.arms[0].num_diverged == 2


def comparison_of(scores, **design):
    from bigbatch import plan

    def arm(name, values):
        results = tuple(Result("t", 1, 1, test_score=v / 100, train_s=2.0, samples_per_s=3.0, diverged=v == 0) for v in values)
        return Arm(name, name, RECIPE, results)

    arms = tuple(arm(name, values) for name, values in zip(("reference", "batch only", "linear"), scores, strict=True))
    fixed = {"margin": 0.5, "seeds": len(scores[0]), "max_seeds": len(scores[0]), "bad_share": 0.5, **design}
    return Comparison("t", "accuracy", plan(RECIPE, global_batch=64, rule="linear"), arms, Design(**fixed))


FIVE = [90.0, 90.1, 90.2, 90.0, 90.1]


def test_sentences():
    comparison = comparison_of([FIVE, [80, 80.1, 80.2, 80.1, 80], [90, 90.2, 90.3, 90, 90.1]])
    assert comparison.sentence(comparison.arms[1]).startswith(
        "batch only at 32: did not hold: -10.00 points of accuracy [-10.07, -9.93] over 5 "
    )
    assert comparison.sentence(comparison.arms[2]) == (
        "linear at 32: held: +0.04 points of accuracy [-0.01, +0.09] over 5 seeds, margin -0.5 at 95 %; none of 5 runs bad (more than 0.5 "
        "below every run of the reference): at 95 % fewer than 46 % are"
    )
    comparison = comparison_of([[90, 90.1], [90, 90.3], [90, 0]], bad_share=0.2)
    assert comparison.sentence(comparison.arms[1]).endswith(
        'fewer than 78 % are. "held" needs 14 runs, none of them bad: --max-seeds 14, or --bad-share 0.78 to let more of them be bad'
    )
    one = comparison.sentence(comparison.arms[2])
    assert one.startswith("linear at 32: undecided: +0.00 points of accuracy, no interval over 1 seed, ")
    assert "1 of 2 (50 %; 1.26 to 98.7 % at 95 %) runs diverged" in one
    assert one.endswith("2 seeds did not decide; a new comparison needs more, or a wider margin")


def test_a_score_that_is_not_a_number_is_named():
    comparison = comparison_of([FIVE, FIVE, [90.0, math.nan, 90.1, 90.2, math.nan]])
    assert comparison.sentence(comparison.arms[2]) == (
        "linear at 32: can't be judged: the test score of linear, seeds 1, 4, is not a number; see why the task's scores are not finite"
    )
    assert comparison.verdict(comparison.arms[2]).outcome == "undecided"
    assert comparison.verdict(comparison.arms[1]).outcome != "lost"
    reference = comparison_of([[math.nan, *FIVE[1:]], FIVE, FIVE])
    assert "the test score of reference, seed 0, is not a number" in reference.sentence(reference.arms[1])
    assert list(rows_of(json.loads(json.dumps(comparison.to_dict()))))[2].score.startswith("90.10")


def test_one_diverged_run_of_the_reference_does_not_spoil_all():
    """Nor one of three: at 95 % its share may be as low as 2 %."""
    three = comparison_of([[0, 90, 90.1], [90, 90, 90.1], [80, 80, 80.1]], bad_share=0.2, max_seeds=14)
    assert not three.cannot_be_judged(three.arms[1])
    comparison = comparison_of([[0, *FIVE], [90, *FIVE], [80, *[score - 10 for score in FIVE]]], max_seeds=6, resolution=0.1)
    assert comparison.verdict(comparison.arms[2]).outcome == "lost"
    assert "1 of the reference's diverged too" in comparison.sentence(comparison.arms[2])


def fake_scores(monkeypatch, score_of):
    """Runs that take no time: `score_of` a global batch and a seed."""

    def fit(task, recipe, *, out, **_):
        place = out / "result.json"
        calls.append(place.exists())
        out.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            score = score_of(recipe.batch.global_batch, recipe.seed)
            place.write_text(Result("t", 1, 1, test_score=score / 100, train_s=1.0, samples_per_s=1.0).to_json())
        return Result.from_json(place.read_text())

    calls = []
    monkeypatch.setattr(task_runner, "fit", fit)
    return calls


def wobble(batch, seed):
    return 90 + 0.1 * math.sin(3 * seed + batch)


def test_it_goes_on_by_seeds_until_each_arm_is_decided(tmp_path, monkeypatch):
    fake_scores(monkeypatch, wobble)
    said = []
    comparison = compare_digits(tmp_path, to=64, seeds=3, max_seeds=None, say=said.append)
    reference, only, planned = comparison.arms
    assert (len(reference.results), len(only.results), len(planned.results)) == (14, 14, 14)
    assert {comparison.verdict(arm).outcome for arm in (only, planned)} == {"held"}
    assert said[0].startswith('3 to 14 seeds an arm, margin 0.5 points: of an arm as good as the reference, "held" is said in 9')
    assert "an assumed spread of 0.3 points, for none is measured yet" in said[0]
    assert any("the measured spread of their differences" in line for line in said)
    stored = json.loads((tmp_path / "batch-64-linear.comparison.json").read_text())
    assert stored["design"]["max_seeds"] == 14
    assert stored["expectation"].startswith("3 to 14 seeds")


def test_an_arm_that_is_lost_stops_and_more_seeds_reuse_what_is_there(tmp_path, monkeypatch):
    calls = fake_scores(monkeypatch, lambda batch, seed: wobble(batch, seed) - 5 * (batch == 64))
    first = compare_digits(tmp_path, seeds=3, max_seeds=5)
    assert [len(arm.results) for arm in first.arms] == [3, 3, 3]  # both are lost at once
    assert len(calls) == 9
    fake_scores(monkeypatch, wobble)
    other = compare_digits(tmp_path, to=128, seeds=3, max_seeds=5, bad_share=0.5)
    assert [len(arm.results) for arm in other.arms] == [5, 5, 5]
    assert other.arms[0].results[:3] == first.arms[0].results
    again = fake_scores(monkeypatch, wobble)
    more = compare_digits(tmp_path, to=128, seeds=3, max_seeds=14)
    assert [len(arm.results) for arm in more.arms] == [14, 14, 14]
    assert sum(again) == 15  # found finished
    assert more.arms[2].results[:5] == other.arms[2].results


def test_the_table():
    reference, only, planned = rows_of(comparison_of([[90, 91], [80, 80], [0, 0]]).to_dict())
    assert reference == ("reference", "32", "90.50 ± 0.71 %", "1", "3", "2.0", "0 of 2", "1", "0.0011")
    assert only.score == "80.00 ± 0.00 %"
    assert (planned.score, planned.diverged) == ("-", "2 of 2")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"to": 32}, "to = 32: is the reference's own batch"),
        ({"to": 0}, "global_batch = 0: must be a finite number above zero"),
        ({"to": 2000}, "batch.global_batch = 2,000: is larger than the training set of 1,297 samples"),
        ({"seeds": 0}, "seeds = 0: must be a finite number above zero"),
        ({"seeds": 3}, "max_seeds = 2: must be seeds = 3 or more; raise it"),
        ({"bad_share": 0}, "bad_share = 0: must lie between 0 and 1"),
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


def test_runs_that_do_not_follow_their_seed_are_not_judged(tmp_path):
    """Fourteen copies of one run used to hold, by an interval of one test sample."""

    def deaf(recipe, run):
        return 0.9 if recipe.batch.global_batch == 32 else 0.898

    runner = FunctionRunner(deaf, metric="accuracy", num_test_samples=1000)
    comparison = scale(runner, to=64, rule="linear", recipe=RECIPE, seeds=3, max_seeds=14, out=tmp_path, quiet=True)
    assert [len(arm.results) for arm in comparison.arms] == [3, 3, 3]
    assert "what is run does not follow the seed" in comparison.sentence(comparison.arms[2])
    assert comparison.verdict(comparison.arms[2]).outcome == "undecided"


def test_a_script_with_a_warm_up_of_its_own_in_updates_can_be_compared(tmp_path):
    recipe = RECIPE.replace({"schedule.warmup": {"kind": "gradual", "updates": 10}})
    seen = []

    def fixed(recipe, run):
        seen.append((recipe.batch.global_batch, recipe.schedule.warmup.updates))
        return 0.9 + 0.001 * recipe.seed

    runner = FunctionRunner(fixed, metric="accuracy", can=["lr"])
    comparison = scale(runner, to=64, recipe=recipe, seeds=2, max_seeds=2, out=tmp_path, quiet=True)
    assert comparison.plan.rule == "legw"
    assert set(seen) == {(32, 10), (64, 10)}
