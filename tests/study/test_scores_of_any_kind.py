"""Studies of a task whose score is a loss in nats, lower is better; and of other metrics: verdicts, tables, targets, reports."""

import json
import math
from dataclasses import replace

import pytest
from tests.loss_task import NATS, RECIPE, Nats

from bigbatch import Diverged, UserError, plan, scale
from bigbatch.core.checks import InputError
from bigbatch.core.clock import Clock
from bigbatch.noise.critical_batch import CriticalBatch
from bigbatch.report import write_report
from bigbatch.report.curvature import draw_score
from bigbatch.report.trade_off import draw_trade_off
from bigbatch.runner import task as task_runner
from bigbatch.study.comparison.comparison import Arm, Comparison
from bigbatch.study.comparison.expectation import expectation
from bigbatch.study.comparison.stored import read_comparison, rows_of
from bigbatch.study.comparison.verdict import Design
from bigbatch.study.critical.critical import best_factor, critical
from bigbatch.study.critical.study import Trial
from bigbatch.study.curvature.study import CurvatureStudy, Measure, Measured
from bigbatch.study.grid import cell_text, verdict_of
from bigbatch.study.search import search
from bigbatch.tasks import ACCURACY, Metric
from bigbatch.train import Result

PERPLEXITY = Metric("perplexity", better="lower", margin=0.01, relative=True)
ERROR = replace(ACCURACY, name="error rate", better="lower")
REWARD = Metric("reward", margin=5)
WOBBLE = [0.0, 0.001, 0.002, 0.0, 0.001]


def comparison_of(metric, reference, candidate, margin=None):
    def arm(name, scores):
        results = tuple(Result("t", 1, 1, test_score=score, train_s=2.0, samples_per_s=3.0, diverged=score is None) for score in scores)
        return Arm(name, name, RECIPE, results, metric)

    arms = (arm("reference", reference), arm("batch only", reference), arm("linear", candidate))
    design = Design(metric.comparable_margin(margin), len(reference), len(reference), 0.5)
    return Comparison("t", metric, plan(RECIPE, global_batch=64, rule="linear"), arms, design)


def verdict(metric, reference, candidate, margin=None):
    comparison = comparison_of(metric, reference, candidate, margin)
    return comparison.verdict(comparison.arms[2]).outcome, comparison.sentence(comparison.arms[2])


def test_a_higher_loss_is_lost_and_a_lower_one_held():
    outcome, text = verdict(NATS, [0.3 + w for w in WOBBLE], [0.4 + 2 * w for w in WOBBLE])
    assert outcome == "lost"
    assert text.startswith("linear at 16: did not hold: +0.101 nats of loss [+0.100, +0.102] over 5 seeds, margin +0.02 nats at 95 %")
    outcome, text = verdict(NATS, [0.4 + w for w in WOBBLE], [0.3 + 2 * w for w in WOBBLE])
    assert outcome == "held"
    assert text == (
        "linear at 16: held: -0.099 nats of loss [-0.100, -0.098] over 5 seeds, margin +0.02 nats at 95 %; none of 5 runs bad (more than "
        "0.02 nats above every run of the reference): at 95 % fewer than 46 % are"
    )


def test_a_bound_of_one_side_is_the_right_one():
    """Three seeds may say "lost", which needs the least that a loss rose; "held" takes five."""
    comparison = comparison_of(NATS, [0.3, 0.301, 0.302], [0.4, 0.402, 0.404])
    comparison = replace(comparison, design=replace(comparison.design, max_seeds=5))
    assert "+0.101 nats of loss, at least +0.0" in comparison.sentence(comparison.arms[2])
    higher = comparison_of(REWARD, [30, 30.1, 30.2], [10, 10.2, 10.4])
    higher = replace(higher, design=replace(higher.design, max_seeds=5))
    assert "-19.9 of reward, at most -19.7," in higher.sentence(higher.arms[2])


@pytest.mark.parametrize(
    ("metric", "reference", "worse", "told"),
    [
        (ERROR, 0.1, 0.12, "+2.08 points of error rate [+2.00, +2.16] over 5 seeds, margin +0.5 at 95 %"),
        (PERPLEXITY, 20.0, 21.0, "+5.00 % of perplexity [+5.00, +5.01] over 5 seeds, margin +1 % at 95 %"),
        (REWARD, -100.0, -120.0, "-20.0 of reward [-20.0, -20.0] over 5 seeds, margin -5 at 95 %"),
        (Metric("loss", "bits per token", "lower", margin=0.5), 8.0, 9.0, "+1.00 bits per token of loss [+1.00, +1.00] over 5 seeds"),
    ],
)
def test_other_metrics(metric, reference, worse, told):
    reference, worse = [reference + w for w in WOBBLE], [worse + 2 * w for w in WOBBLE]
    outcome, text = verdict(metric, reference, worse)
    assert outcome == "lost"
    assert told in text
    outcome, text = verdict(metric, worse, reference)
    assert outcome == "held"
    assert metric.worse_side in text


def test_a_relative_margin_is_of_the_ratio():
    """0.9 % above is held at a margin of 1 %, whatever the size of the scores; 1.1 % above is lost."""
    for size in (0.001, 5.0, 1e6):
        reference = [size * (1 + w / 10) for w in WOBBLE]
        assert verdict(PERPLEXITY, reference, [1.009 * score for score in reference[1:] + reference[:1]])[0] == "held"
        assert verdict(PERPLEXITY, reference, [1.011 * score for score in reference[1:] + reference[:1]])[0] == "lost"
    _, text = verdict(PERPLEXITY, [20.0, 20.1, 20.2], [20.0, 0.0, 20.1])
    assert text.endswith("the test score of linear, seed 1, is not above 0, which a relative margin needs; state an absolute one")
    assert "seed 1, is not a number" in verdict(PERPLEXITY, [20.0, 20.1], [20.0, math.nan])[1]


def test_the_table_and_what_is_stored():
    comparison = comparison_of(NATS, [0.3, 0.31, 0.32], [0.4, None, 0.42])
    stored = json.loads(json.dumps(comparison.to_dict()))
    assert (stored["metric"]["unit"], stored["margin"]) == ("nats", 0.02)
    assert [row.score for row in rows_of(stored)] == ["0.310 ± 0.010 nats", "0.310 ± 0.010 nats", "0.410 ± 0.014 nats"]
    assert comparison_of(PERPLEXITY, [20.0], [20.0]).to_dict()["margin"] == pytest.approx(0.01)
    assert comparison_of(ACCURACY, [0.9], [0.9]).to_dict()["metric"] == "accuracy"


def test_a_stored_metric_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "batch-64-linear.comparison.json"
    stored = comparison_of(NATS, [0.3], [0.3]).to_dict()
    for metric in ({"name": "loss"}, 3, {**stored["metric"], "better": "less"}):
        path.write_text(json.dumps({**stored, "metric": metric}))
        with pytest.raises(InputError, match="is damaged: metric"):
            read_comparison(path)


def test_what_can_be_expected_is_told_in_the_unit():
    said = expectation(Design(0.02), [], NATS)
    assert said.startswith("3 to 14 seeds an arm, margin 0.02 nats: of an arm as good as the reference")
    assert "an assumed spread of 0.012 nats" in said
    assert "a spread of 0.01 nats, measured on 3 runs" in expectation(Design(0.02), [[-0.3, -0.31, -0.32]], NATS)
    said = expectation(Design(PERPLEXITY.comparable_margin()), [[-3.0, -3.01]], PERPLEXITY)
    assert "margin 1 %: of an arm" in said
    assert "a spread of 0.71 %, measured on 2 runs" in said


def test_scale_takes_the_margin_of_the_task(tmp_path, monkeypatch):
    def fit(task, recipe, *, out, **_):
        out.mkdir(parents=True, exist_ok=True)
        score = 0.3 + 0.001 * math.sin(3 * recipe.seed + recipe.batch.global_batch) + 0.1 * (recipe.batch.global_batch == 64)
        result = Result("t", 1, 1, test_score=score, train_s=1.0, samples_per_s=1.0)
        (out / "result.json").write_text(result.to_json())
        return result

    monkeypatch.setattr(task_runner, "fit", fit)
    said = []
    settings = {"to": 64, "rule": "linear", "seeds": 3, "max_seeds": 5, "recipe": RECIPE, "bad_share": 0.5, "quiet": True}
    comparison = scale(Nats(), **settings, out=tmp_path / "own", say=said.append)
    assert comparison.margin == comparison.design.margin == 0.02
    assert comparison.design.resolution == 0  # one sample can change a mean loss by any amount
    assert {comparison.verdict(arm).outcome for arm in comparison.arms[1:]} == {"lost"}
    assert "margin 0.02 nats" in said[0]
    wide = scale(Nats(), **settings, out=tmp_path / "wide", margin=0.2)
    assert {wide.verdict(arm).outcome for arm in wide.arms[1:]} == {"held"}
    assert wide.margin == 0.2


def test_real_runs_and_their_report_in_nats(tmp_path):
    comparison = scale(Nats(), to=64, rule="linear", seeds=2, max_seeds=2, recipe=RECIPE, out=tmp_path, quiet=True)
    page = write_report(tmp_path).read_text()
    assert all(
        text in page for text in ("validation loss, nats", "nats of loss", "Did loss hold when the batch grew?", "Validation loss by")
    )
    assert not any(text in page for text in ("loss, %", "points", "accuracy"))
    assert all(row.score.endswith(" nats") for row in rows_of(comparison.to_dict()))
    single = write_report(tmp_path / "reference" / "seed-0").read_text()
    assert "validation loss, nats" in single
    assert "test loss" in single
    assert "Did loss hold" not in single  # it is one run


def test_a_grid_s_cells():
    def lines(*scores):
        return [{"diverged": False, "test_score": score} for score in scores]

    reference, worse = lines(0.3, 0.301, 0.302), lines(0.4, 0.401, 0.402)
    assert verdict_of(worse, reference, margin=0.02, metric=NATS).outcome == "lost"
    assert verdict_of(reference, worse, margin=0.02, metric=NATS).outcome == "held"
    assert cell_text(worse, reference, margin=0.02, metric=NATS) == "0.401 ± 0.001"
    assert cell_text(reference, worse, margin=0.02, metric=NATS) == "**0.301 ± 0.001 held**"
    assert cell_text(lines(20.0, 20.1), lines(20.0, 20.1), margin=0.1, metric=PERPLEXITY) == "**20.05 ± 0.07 held**"


def test_a_search_finds_the_lowest_loss_and_puts_diverged_runs_last(tmp_path, monkeypatch):
    def fit(task, recipe, **_):
        if recipe.optimizer.lr > 1:
            raise Diverged("loss = nan", update=1)
        score = math.nan if recipe.optimizer.lr == 0.5 else recipe.optimizer.lr
        return Result("t", 1, 1, validation_score=score, train_s=1.0)

    monkeypatch.setattr("bigbatch.runner.task.fit", fit)
    found = search(Nats(), RECIPE, {"optimizer.lr": [9.0, 0.5, 0.2, 0.1]}, seeds=[0], out=tmp_path)
    assert [trial.settings["optimizer.lr"] for trial in found][:2] == [0.1, 0.2]
    assert [trial.mean for trial in found][2:] == [math.inf, math.inf]
    text = (tmp_path / "trials.jsonl").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    monkeypatch.setattr("bigbatch.runner.task.fit", None)  # nothing is left to run
    assert search(Nats(), RECIPE, {"optimizer.lr": [9.0, 0.5, 0.2, 0.1]}, seeds=[0], out=tmp_path) == found


def test_the_critical_batch_to_a_target_of_a_loss(tmp_path, monkeypatch):
    def fit(task, recipe, *, target, **_):
        assert target == 0.3
        if recipe.optimizer.lr > 0.5:
            raise Diverged("loss = nan", update=7)
        needed = round(500 * (1 + 100 / recipe.batch.global_batch))
        made = min(needed, recipe.num_updates)
        return Result("t", made, made, best_validation_score=0.3, train_s=1.0, reached=needed <= recipe.num_updates)

    monkeypatch.setattr("bigbatch.runner.task.fit", fit)
    study = critical(Nats(), RECIPE, batches=[16, 64, 256], target=0.3, max_epochs=2000, out=tmp_path, quiet=True)
    assert isinstance(study.fit, CriticalBatch)
    assert next(study.doubts()).startswith("this is for loss 0.3 nats on validation data")
    stored = json.loads((tmp_path / "critical.json").read_text())
    assert stored["metric"]["better"] == "lower"
    assert "tests/nats: to loss 0.3 nats on validation data" in draw_trade_off(stored)
    diverged = [trial for point in stored["points"] for trial in point["tried"] if trial["diverged"]]
    assert diverged
    assert all(trial["best_score"] is None for trial in diverged)
    monkeypatch.setattr("bigbatch.runner.task.fit", None)  # nothing is left to run
    assert critical(Nats(), RECIPE, batches=[16, 64, 256], target=0.3, max_epochs=2000, out=tmp_path, quiet=True).points == study.points
    with pytest.raises(UserError, match=r"target = nan: must be a finite validation score \(loss, nats\)"):
        critical(Nats(), RECIPE, batches=[16, 64, 256], target=math.nan, out=tmp_path / "new")


def test_real_runs_to_a_target_of_a_loss(tmp_path):
    settings = {"lr_factors": [1.0], "max_epochs": 20, "quiet": True}
    study = critical(Nats(), RECIPE, batches=[8, 16, 32], target=0.35, out=tmp_path / "reached", **settings)
    assert all(run.reached and run.best_score <= 0.35 for point in study.points for run in point.runs)
    assert all(run.updates > 3 for point in study.points for run in point.runs)  # not at the first evaluation, far above the target
    study = critical(Nats(), RECIPE, batches=[8, 16, 32], target=0.0, out=tmp_path / "never", **{**settings, "max_epochs": 1})
    assert study.sentence() == "no fit: 0 of 3 batches reached the target, three must; raise the target or train longer"


def test_where_no_rate_reached_the_target_the_lowest_loss_is_the_best():
    def trial(score):
        return Trial(0.1, 0, 9, False, False, score, 1.0)

    tried = {1: trial(0.8), 2: trial(0.7), 4: trial(None)}
    assert best_factor(tried, NATS) == 2
    assert best_factor(tried) == 1


def test_curvature_tables_and_plots():
    measured = Measured(
        run="runs/a",
        name="a",
        checkpoint="last.pt",
        clock=Clock(1, 1),
        global_batch=16,
        loss=0.3,
        score=0.31,
        gradient=0.1,
        eigenvalues=[1.0],
        residuals=[0.0],
        converged=[True],
        trace=(1.0, 0.9, 1.1),
        trace_converged=True,
        density={name: [0.0, 1.0] for name in ("x", "mean", "low", "high")},
        range=(0.0, 1.0),
        sharpness=[Measure("SAM, rho 0.05", 0.1, "")],
        seconds=1.0,
    )
    study = CurvatureStudy("t", NATS, 10, 10, (measured,))
    assert ["training loss", "0.310 nats"] in study.tables()[0].rows
    stored = json.loads(json.dumps(study.to_dict()))
    assert stored["metric"]["unit"] == "nats"
    path = [{"alpha": alpha, "loss": 0.3, "score": 0.3} for alpha in (0.0, 1.0)]
    drawn = draw_score({**stored, "path": path, "names": ["a", "b"]})
    assert "validation loss, nats" in drawn
    assert "validation accuracy, %" in draw_score({**stored, "metric": "accuracy", "path": path, "names": ["a", "b"]})
