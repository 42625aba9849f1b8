"""Did a run learn anything? Its scores against those of a constant prediction on the same samples.

Rule:   runs learnt nothing where their mean score is not above that of the best constant output by more than two standard errors over
        samples; or where their mean loss is not below the constant's by 1 %, and their mean score not above its by a third of the standard
        deviation of a sample's score.
Why:    the second part is for weights that never moved: an untrained network agrees with its targets by luck, as if there were a few
        samples only, one a class, but its loss is that of a constant or worse. A loss alone says nothing: an overconfident model may have
        one of any size.
Margin: where a constant prediction is within the margin of a reference that learnt something, anything would be "held"; that is said too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bigbatch.core.metric import Metric
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.result import Result

ERRORS = 2.0
LUCK = 1 / 3
"""Of the standard deviation of a sample's score: more than what untrained networks have by luck."""
LOSS = 0.01
"""Of the constant's loss."""


def learnt_nothing(results: Sequence[Result], constant: ConstantPrediction, metric: Metric) -> str:
    """Why runs learnt nothing, in words; empty where they learnt something, or nothing is known.

    Args:
        results: Runs of one recipe; those that diverged, or have no test score, are left out.
        constant: On the test set.
        metric: Of the scores.
    """
    good = _with_score(results)
    if not good:
        return ""
    score = statistics.fmean(result.test_score for result in good)
    losses = [result.test_loss for result in good if math.isfinite(result.test_loss)]
    loss = statistics.fmean(losses) if len(losses) == len(good) else math.nan
    above = metric.comparable(score) - metric.comparable(constant.score)
    scatter = constant.spread / abs(constant.score) if metric.relative and constant.score else metric.shown(constant.spread)
    same_score = above <= ERRORS * scatter / math.sqrt(constant.num_samples)
    same_loss = loss >= constant.loss - LOSS * abs(constant.loss) and above <= LUCK * scatter
    if not (same_score or same_loss):
        return ""
    text = f"learnt nothing: test {metric.name} {metric.text(score)}"
    if same_score:
        return f"{text}, and {metric.text(constant.score)} for a prediction that is the same for every sample"
    return f"{text} and loss {loss:.4g}, and {metric.text(constant.score)} and {constant.loss:.4g} for one prediction for every sample"


def margin_is_too_wide(results: Sequence[Result], constant: ConstantPrediction, metric: Metric, margin: float) -> bool:
    """Whether the constant prediction is within the margin, a difference of comparable scores, of the mean of the runs."""
    good = _with_score(results)
    if not good:
        return False
    return metric.comparable(statistics.fmean(result.test_score for result in good)) - metric.comparable(constant.score) <= margin


def _with_score(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if not result.diverged and math.isfinite(result.test_score)]


def stored(constant: ConstantPrediction | str | None) -> Mapping[str, Any] | None:
    """A constant prediction as plain values; a text says why there is none."""
    return {"unknown": constant} if isinstance(constant, str) else None if constant is None else constant._asdict()


def in_words(constant: ConstantPrediction | str | None, metric: Metric) -> str:
    """What a constant prediction scores, in a sentence; empty where nothing was measured."""
    if constant is None:
        return ""
    if isinstance(constant, str):
        return f"whether the reference learnt more than a constant prediction is not known: {constant}"
    return f"the same prediction for every sample has a test {metric.name} of {metric.text(constant.score)}"
