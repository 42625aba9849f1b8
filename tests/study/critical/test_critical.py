"""The study of the critical batch: which runs it makes, how it chooses rates, what it concludes and what it admits."""

import json
import math

import pytest

from bigbatch import Diverged, Interrupted, Recipe, UserError
from bigbatch.noise.critical_batch import CriticalBatch, Estimate
from bigbatch.schedules import schedule_of
from bigbatch.study.constant_rate import WARMUP_UPDATES
from bigbatch.study.critical.critical import best_factor, critical
from bigbatch.study.critical.study import Trial, in_words, rows_of
from bigbatch.train import Result

RECIPE = Recipe.named("digits/mlp").replace({"batch.micro_batch": 16})


def study(out, **kwargs):
    given = {"recipe": RECIPE, "batches": [16, 64, 256], "target": 0.9, "quiet": True, "out": out, **kwargs}
    return critical("digits/mlp", **given)


class Fake:
    """Runs that cost nothing: S = 500 (1 + 100/B) at the best rate 0.1 sqrt(B/32) shift, more by the square of the distance in octaves."""

    def __init__(self, shift=1.0, stable=math.inf, noise=0.0):
        self.shift, self.stable, self.noise, self.calls = shift, stable, noise, []

    def __call__(self, task, recipe, *, target, evaluate_every, **settings):
        self.calls.append((recipe, evaluate_every))
        batch, lr = recipe.batch.global_batch, recipe.optimizer.lr
        if lr > self.stable:
            raise Diverged("loss = nan", update=7)
        off = math.log2(lr / (0.1 * math.sqrt(batch / 32) * self.shift))
        needed = round(500 * (1 + 100 / batch) * (1 + off**2) * (1 + self.noise * recipe.seed))
        reached, score = needed <= recipe.num_updates, 0.9 - 0.01 * abs(off)
        made = min(needed, recipe.num_updates)
        return Result("digits/mlp", made, made * batch, best_validation_score=score, train_s=1.0, reached=reached)


@pytest.fixture
def fake(monkeypatch):
    def use(**kwargs):
        runs = Fake(**kwargs)
        monkeypatch.setattr("bigbatch.runner.task.fit", runs)
        return runs

    return use


def rates(recipes):
    """Rates in units of 0.1 sqrt(batch / 32)."""
    return [pytest.approx(recipe.optimizer.lr / (0.1 * math.sqrt(recipe.batch.global_batch / 32))) for recipe in recipes]


def test_real_runs_over_seeds_are_kept_and_not_repeated(tmp_path, monkeypatch):
    said = []
    first = study(tmp_path, seeds=2, say=said.append)
    assert [point.global_batch for point in first.points] == [16, 64, 256]
    assert all([run.seed for run in point.runs] == [0, 1] for point in first.points)
    assert all(run.reached and run.best_score >= 0.9 for point in first.points for run in point.runs)
    assert first.points[0].updates > first.points[1].updates > first.points[2].updates / 2
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == len(said) == sum(len(point.tried) for point in first.points) + 3
    assert all(line["target"] == 0.9 and line["recipe"]["budget"] for line in lines)
    stored = json.loads((tmp_path / "critical.json").read_text())
    assert {name: stored[name] for name in first.to_dict()} == json.loads(json.dumps(first.to_dict()))
    assert stored["environment"]["torch"]
    monkeypatch.setattr("bigbatch.runner.task.fit", None)  # nothing is left to run
    assert study(tmp_path, seeds=2).points == first.points
    assert all("found finished" not in text for text in said)


def test_the_fit_finds_the_truth_behind_the_runs(tmp_path, fake):
    fake()
    result = study(tmp_path, max_epochs=1000)
    assert result.fit.min_steps.value == pytest.approx(500, rel=0.01)
    assert result.fit.critical_batch.value == pytest.approx(100, rel=0.01)
    row = next(rows_of(result))
    assert (row.batch, row.updates, row.samples, row.steps_ratio, row.samples_ratio) == ("16", "3,625", "58,000", "7.25", "1.16")
    assert result.sentence().startswith("critical batch about 100 [")
    assert "there, twice the fewest updates (500) and twice the fewest samples (50,000)" in result.sentence()


def test_a_constant_rate_a_short_warmup_and_whole_updates(tmp_path, fake):
    runs = fake()
    study(tmp_path, max_epochs=1000, recipe=RECIPE.replace({"batch.rule.kind": "adabatch", "optimizer.weight_decay": 1e-4}))
    for recipe, _ in runs.calls:
        assert recipe.batch.rule is None
        assert recipe.schedule.decay.kind == "constant"
        assert recipe.optimizer.weight_decay == 1e-4
        factor, batch = schedule_of(recipe), recipe.batch.global_batch
        clock = type("C", (), {"samples": 0})
        assert factor(clock) == pytest.approx(1 / WARMUP_UPDATES)
        clock.samples = batch * WARMUP_UPDATES
        assert factor(clock) == 1.0
    assert runs.calls[0][0].budget.updates == math.ceil(1000 * 1297 / 16)


def test_a_candidate_ends_where_it_can_no_longer_win(tmp_path, fake):
    """At 16: 3,625 at factor 1; 0.5 and 2 are one octave off, would need twice that, and get no more than 3,625."""
    runs = fake()
    result = study(tmp_path, max_epochs=1000)
    assert rates(recipe for recipe, _ in runs.calls[:3]) == [1, 0.5, 2]
    assert [recipe.budget.updates for recipe, _ in runs.calls[1:3]] == [3625, 3625]
    assert [trial.reached for trial in result.points[0].tried] == [False, True, False]
    assert not result.points[0].at_edge


def test_a_best_rate_at_the_edge_moves_the_range(tmp_path, fake):
    runs = fake(shift=8)
    result = study(tmp_path, max_epochs=1000)
    assert rates(recipe for recipe, _ in runs.calls[:5]) == [1, 0.5, 2, 4, 8]
    assert rates(recipe for recipe, _ in runs.calls[5:6]) == [16]
    assert result.points[0].lr == pytest.approx(8 * 0.1 * math.sqrt(16 / 32))
    assert not result.points[0].at_edge
    assert result.fit.critical_batch.value == pytest.approx(100, rel=0.01)


def test_the_range_moves_three_steps_and_then_says_so(tmp_path, fake):
    runs = fake(shift=1 / 1024)
    result = study(tmp_path, max_epochs=100_000)
    assert rates(recipe for recipe, _ in runs.calls[:6]) == [1, 0.5, 2, 0.25, 0.125, 0.0625]
    assert result.points[0].at_edge
    assert next(rows_of(result)).note == "rate at the edge"
    assert any(doubt.startswith("batch 16: its best rate, 0.00442, is at the edge") for doubt in result.doubts())


def test_one_factor_is_no_search(tmp_path, fake):
    runs = fake(shift=8)
    result = study(tmp_path, max_epochs=10_000, lr_factors=[1])
    assert len(runs.calls) == 3
    assert not any(point.at_edge for point in result.points)


def test_diverged_rates_are_no_candidates_and_the_range_moves_down(tmp_path, fake):
    runs = fake(stable=0.01)
    result = study(tmp_path, max_epochs=100_000)
    assert rates(recipe for recipe, _ in runs.calls[:6]) == [1, 0.5, 2, 0.25, 0.125, 0.0625]
    assert [trial.diverged for trial in result.points[0].tried] == [False, False, True, True, True, True]
    assert result.points[0].runs[0].reached


def test_runs_that_never_reach_the_target_are_stopped_in_the_fit_or_prevent_it(tmp_path, fake):
    fake()
    short = study(tmp_path / "short", max_epochs=1)
    assert short.fit is None
    assert short.sentence() == "no fit: 0 of 3 batches reached the target, three must; lower the target or train longer"
    assert short.to_dict()["fit"] is None
    assert short.points[0].runs[0].updates == math.ceil(1297 / 16)
    assert next(rows_of(short)).note == "1 of 1 stopped before the target"
    assert next(rows_of(short)).updates == "> 82"
    some = study(tmp_path / "some", max_epochs=100, batches=[4, 16, 64, 256, 1024])  # at 256: 507 updates made, 695 needed
    assert [point.num_stopped for point in some.points] == [0, 0, 0, 1, 1]
    assert (some.fit.num_runs, some.fit.num_censored) == (5, 2)
    assert some.fit.critical_batch.value == pytest.approx(100, rel=0.05)


def test_seeds_run_at_the_chosen_rate_and_a_diverged_one_is_left_out(tmp_path, monkeypatch, fake):
    runs = fake(noise=0.1)
    result = study(tmp_path / "a", seeds=3, max_epochs=1000)
    assert [recipe.seed for recipe, _ in runs.calls[:5]] == [0, 0, 0, 1, 2]
    assert [run.updates for run in result.points[0].runs] == [3625, 3988, 4350]
    assert result.points[0].updates == pytest.approx((3625 * 3988 * 4350) ** (1 / 3))
    assert result.fit.num_runs == 9

    def breaks(task, recipe, **settings):
        if recipe.seed:
            raise Diverged("loss = nan", update=3)
        return runs(task, recipe, **settings)

    monkeypatch.setattr("bigbatch.runner.task.fit", breaks)
    broken = study(tmp_path / "b", seeds=2, max_epochs=1000)
    assert next(rows_of(broken)).note == "1 of 2 diverged, left out"
    assert broken.fit.num_runs == 3
    again = study(tmp_path / "b", seeds=2, max_epochs=1000)
    assert again.points == broken.points


def test_evaluations_are_some_per_cent_of_the_run_apart(tmp_path, fake):
    runs = fake()
    study(tmp_path / "auto", max_epochs=1000)
    intervals = {recipe.batch.global_batch: every for recipe, every in runs.calls}
    assert intervals[16] == pytest.approx(0.01 * 20)
    assert intervals[64] == pytest.approx(0.025 * 16 * 3625 / 1297)
    assert intervals[256] == pytest.approx(0.025 * 64 * 1281 / 1297, rel=1e-3)
    runs.calls.clear()
    study(tmp_path / "auto", max_epochs=1000, evaluate_every=0.5)  # another clock: other runs
    assert {every for _, every in runs.calls} == {0.5}


def test_another_target_is_another_run_and_more_batches_reuse_the_old(tmp_path, fake):
    runs = fake()
    study(tmp_path, max_epochs=1000)
    count = len(runs.calls)
    study(tmp_path, max_epochs=1000, batches=[16, 32, 64, 256])
    assert len(runs.calls) == count + 3
    study(tmp_path, max_epochs=1000, target=0.8)
    assert len(runs.calls) == 2 * count + 3


def test_muon_has_both_its_rates_searched(tmp_path, fake):
    from bigbatch import plan

    runs = fake()
    study(tmp_path, max_epochs=1000, recipe=plan(RECIPE, global_batch=64, rule="muon").recipe)
    ratios = {round(recipe.optimizer.adam_lr / recipe.optimizer.lr, 6) for recipe, _ in runs.calls}
    assert len(ratios) == 1


def test_an_interrupted_study_goes_on(tmp_path, fake, monkeypatch):
    runs = fake()
    straight = study(tmp_path / "straight", max_epochs=1000)

    def stops(*args, **kwargs):
        if len(runs.calls) == 5:
            raise Interrupted("stopped")
        return runs(*args, **kwargs)

    runs.calls.clear()
    monkeypatch.setattr("bigbatch.runner.task.fit", stops)
    with pytest.raises(Interrupted, match="stopped at batch 64, rate 0.28.*finished runs are kept"):
        study(tmp_path / "broken", max_epochs=1000)
    monkeypatch.setattr("bigbatch.runner.task.fit", runs)
    with (tmp_path / "broken" / "runs.jsonl").open("a") as file:
        file.write('{"global_batch": 64, "lr')  # killed while it wrote a line
    assert study(tmp_path / "broken", max_epochs=1000).points == straight.points


@pytest.mark.parametrize(
    ("noise", "words"),
    [(100.0, "lies inside the interval of the critical batch, 1 times it"), (5.0, "lies outside the interval of the critical batch, 0.05")],
)
def test_a_noise_scale_is_compared(tmp_path, fake, noise, words):
    fake()
    result = study(tmp_path, max_epochs=1000, batches=[16, 32, 64, 128, 256, 512], noise=noise)
    assert words in result.noise_in_words()
    assert result.to_dict()["noise"]["noise_scale"] == noise
    assert result.to_dict()["noise"]["min_steps"] == pytest.approx(500, rel=0.01) or noise == 5


def trial(updates, reached=True, diverged=False, score=0.9):
    return Trial(0.1, 0, updates, reached, diverged, score, 1.0)


def test_which_rate_is_best():
    assert best_factor({0.5: trial(100), 1: trial(90), 2: trial(80)}) == 2
    assert best_factor({0.5: trial(80), 1: trial(80), 2: trial(80)}) == 1  # of equals the middle
    assert best_factor({1: trial(100), 2: trial(10, reached=False, score=0.99)}) == 1
    assert best_factor({1: trial(9, reached=False, score=0.7), 2: trial(9, reached=False, score=0.8), 4: trial(3, False, True)}) == 2
    assert best_factor({0.5: trial(9, False, True), 1: trial(20, False, True)}) == 0.5


def fitted(critical, min_steps=(100.0, 90.0, 110.0)):
    return CriticalBatch(Estimate(*min_steps), Estimate(70_000.0, 1.0, math.inf), Estimate(*critical), 0.1, 5, 0, 0.95)


@pytest.mark.parametrize(
    ("critical", "words"),
    [
        ((712.0, 498.0, 1020.0), "critical batch about 710 [500, 1,000] samples (95 %): there, twice the fewest updates (100)"),
        ((712.0, 0.0, math.inf), "critical batch about 710 [0, no bound] samples"),
        ((math.inf, 1500.0, math.inf), "no diminishing returns up to 256: the critical batch lies above 1,500 (95 %); add larger batches"),
        ((0.0, 0.0, 12.3), "the number of updates hardly falls from 16 on: the critical batch lies below 12 (95 %); add smaller batches"),
    ],
)
def test_words(critical, words):
    assert in_words(fitted(critical), [16, 64, 256]).startswith(words)


MISTAKES = {
    "too few batches": ({"batches": [16, 64, 64]}, r"batches = \[16, 64\]: two unknowns and a scatter need three"),
    "no batch": ({"batches": [0, 16, 64]}, "batches = 0: must be a finite number above zero"),
    "larger than the data": ({"batches": [16, 64, 2000]}, "batch.global_batch = 2,000: is larger than the training set"),
    "target in per cent": ({"target": 88}, "target = 88: must be a validation score above 0 and up to 1; 88 % is 0.88"),
    "no seeds": ({"seeds": 0}, "seeds = 0: must be a finite number above zero"),
    "no factors": ({"lr_factors": []}, "lr_factors = .*: must hold one at least"),
    "negative factor": ({"lr_factors": [1, -1]}, "lr_factors = -1: must be"),
    "no epochs": ({"max_epochs": 0}, "max_epochs = 0: must be"),
    "no interval": ({"evaluate_every": 0}, "evaluate_every = 0: must be"),
    "negative noise scale": ({"noise": -3.0}, "noise = -3.0: must be a finite number above zero; measure over more updates"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_refuses(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
