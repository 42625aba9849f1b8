"""What a score is: how it is shown, which is better, and what a test over seeds takes of it."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch import UserError
from bigbatch.core.metric import ACCURACY, Metric, metric_of

NATS = Metric("loss", "nats", "lower", margin=0.01)
ERROR = replace(ACCURACY, name="error rate", better="lower")
REWARD = Metric("reward", margin=5)
PERPLEXITY = Metric("perplexity", better="lower", margin=0.01, relative=True)
BLEU = Metric("BLEU", "%", margin=0.02, relative=True)  # shown as given: its scale is 1
ALL = [ACCURACY, NATS, ERROR, REWARD, PERPLEXITY, BLEU]


def test_scores_in_words():
    assert [metric.text(0.12345) for metric in ALL] == ["12.35 %", "0.123 nats", "12.35 %", "0.1", "0.12", "0.12 %"]
    assert [metric.label for metric in ALL] == ["accuracy, %", "loss, nats", "error rate, %", "reward", "perplexity", "BLEU, %"]
    assert (ACCURACY.exact(0.9), NATS.exact(0.3), REWARD.exact(-100)) == ("90 %", "0.3 nats", "-100")
    assert Metric("loss", "nats", "lower", margin=0.01, decimals=5).text(0.1) == "0.10000 nats"
    assert str(NATS) == "loss"


@pytest.mark.parametrize(("margin", "decimals"), [(0.5, 2), (0.01, 3), (0.02, 3), (5, 1), (100, 0), (1e-20, 12)])
def test_as_many_decimals_as_the_margin_needs(margin, decimals):
    shown = Metric("m", margin=margin).number(0.25)
    assert len(shown.partition(".")[2]) == decimals


def test_which_is_better():
    assert ACCURACY.is_better(0.9, 0.8)
    assert not NATS.is_better(0.9, 0.8)
    assert NATS.is_better(0.8, 0.9)
    assert not NATS.is_better(0.8, 0.8)
    for metric in ALL:
        assert metric.is_better(0.5, -math.inf)  # none yet
        assert not any(metric.is_better(score, 0.5) or metric.reaches(score, 0.5) for score in (math.nan, math.inf, -math.inf))
        assert sorted([None, 0.2, math.nan, 0.3], key=metric.rank)[:2] == ([0.3, 0.2] if metric.better == "higher" else [0.2, 0.3])
    assert (ACCURACY.of_diverged, ERROR.of_diverged, NATS.of_diverged, REWARD.of_diverged) == (0.0, 1.0, math.inf, -math.inf)


def test_a_target_is_reached_from_the_worse_side():
    assert ACCURACY.reaches(0.9, 0.9)
    assert not ACCURACY.reaches(0.89, 0.9)
    assert NATS.reaches(0.3, 0.3)
    assert not NATS.reaches(0.31, 0.3)


def test_differences_of_comparable_scores_by_hand():
    assert ACCURACY.comparable(0.9) == 90.0
    assert NATS.comparable(0.3) == -0.3
    assert NATS.difference(NATS.comparable(0.32) - NATS.comparable(0.3)) == pytest.approx(0.02)
    assert NATS.interval(-0.02, 0.01) == (-0.01, 0.02)
    assert NATS.interval(None, 0.01) == (-0.01, None)
    assert PERPLEXITY.comparable(math.e) == -1.0
    assert PERPLEXITY.difference(PERPLEXITY.comparable(20.2) - PERPLEXITY.comparable(20)) == pytest.approx(1.0)  # per cent
    assert BLEU.difference(BLEU.comparable(29.4) - BLEU.comparable(30)) == pytest.approx(-2.0)
    assert math.isnan(PERPLEXITY.comparable(0.0))
    assert (ACCURACY.in_words(-0.5), NATS.in_words(0.0), REWARD.in_words(2.0)) == (
        "-0.50 points of accuracy",
        "+0.000 nats of loss",
        "+2.0 of reward",
    )
    assert PERPLEXITY.in_words(-PERPLEXITY.comparable_margin()) == "+1.00 % of perplexity"


@given(st.sampled_from(ALL), st.floats(0.01, 100), st.floats(0.01, 100))
def test_larger_is_better_of_comparable_scores(metric, a, b):
    assert metric.is_better(a, b) == (metric.comparable(a) > metric.comparable(b)) or math.isclose(a, b)


@given(st.sampled_from(ALL), st.floats(0.001, 0.9))
def test_a_margin_is_as_far_as_it_says(metric, margin):
    comparable = metric.comparable_margin(margin)
    assert comparable > 0
    assert metric.stated_margin(comparable) == pytest.approx(margin)
    reference = 1.7
    step = margin * (reference if metric.relative else 1 / metric.scale)
    worse = reference + (step if metric.better == "lower" else -step)
    assert metric.comparable(reference) - metric.comparable(worse) == pytest.approx(comparable)
    stated = 100 * margin if metric.relative else margin
    assert metric.difference(-comparable) == pytest.approx(stated if metric.better == "lower" else -stated)


def test_stored_and_read_again():
    assert metric_of("accuracy") == ACCURACY
    assert ACCURACY.to_plain() == "accuracy"
    assert metric_of("F1").to_plain() == "F1"
    for metric in ALL:
        assert metric_of(json.loads(json.dumps(metric.to_plain()))) == metric
        assert metric_of({**asdict(metric), "added later": 1}) == metric
    assert replace(ACCURACY, margin=1.0).to_plain()["margin"] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Metric("", margin=1), "metric name = '', unit = '': must be texts, the name not empty"),
        (lambda: Metric("m", "", "more", margin=1), 'metric m: better = \'more\': must be "higher" or "lower"'),
        (lambda: Metric("m", margin=0), "metric m: margin = 0: must be a finite number above zero"),
        (lambda: Metric("m", margin=1, scale=-1), "metric m: scale = -1: must be"),
        (lambda: Metric("m", margin=1, decimals=13), "metric m: decimals = 13: must be a whole number from 0 to 12"),
        (lambda: Metric("m", margin=1, relative=True), "metric m: margin = 1: is relative, and all of the score or more"),
        (lambda: PERPLEXITY.comparable_margin(-1), "margin = -1: must be a finite number above zero"),
        (lambda: metric_of(3), "metric = 3: must be a name, or a Metric with its unit, direction and margin"),
        (lambda: metric_of({"name": "m"}), "metric = {'name': 'm'}: .*margin"),
        (lambda: metric_of({"name": "m", "margin": "a"}), "metric m: margin = 'a': must be a finite number above zero"),
        (lambda: metric_of({"name": "m", "margin": 1, "relative": "no"}), "metric m: relative = 'no': must be true or false"),
        (lambda: ACCURACY.check_target(88), "target = 88: must be a validation score above 0 and up to 1; 88 % is 0.88"),
        (lambda: ERROR.check_target(12), "target = 12: must be a validation score from 0 on and below 1; 12 % is 0.12"),
        (lambda: NATS.check_target(math.nan), r"target = nan: must be a finite validation score \(loss, nats\)"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_name_alone_that_is_no_share_is_refused():
    with pytest.raises(UserError, match=r"""metric = 'mse': a name alone is a share of samples .* Metric\('mse', better="lower", margin"""):
        metric_of("mse")
    assert metric_of({"name": "mse", "better": "lower", "margin": 0.1}).name == "mse"


def test_a_share_is_not_above_one():
    with pytest.raises(UserError, match="score = 3.5: is above 1, and accuracy is a share of samples"):
        ACCURACY.check_share(3.5)
    ACCURACY.check_share(1.0)
    Metric("reward", margin=1.0).check_share(3.5)
