"""Scores are whole numbers of what is printed, of the group that is meant."""

import pytest

from bigbatch.core.checks import RunFailed, UserError
from bigbatch.runner.score_sources import Pattern, compiled


def readings(pattern, *lines):
    source = Pattern(compiled(pattern))
    for line in lines:
        source.on_line(line)
    return source.news()


@pytest.mark.parametrize(
    ("pattern", "line", "score"),
    [
        ("mse ([-+0-9.eE]+)", "test mse 9.63e-03", 9.63e-3),
        ("mse ([0-9.]+)", "test mse 0.5, mae 0.6", 0.5),
        ("mse ([0-9.]+)", "mse 0.5,0.6", 0.5),
        ("acc ([0-9.]+)", "acc 97.18%", 97.18),
        ("acc ([0-9.]+%)", "acc 97.18%", 97.18),
        ("words ([0-9,]+)", "words 2,630", 2630.0),
        ("x ([0-9,.]+)", "x 2,630.12", 2630.12),
        ("reward(.*)", "reward -3.5", -3.5),
        (r"epoch (?P<epoch>\d+) acc ([0-9.]+)", "epoch 15 acc 88.5", 88.5),
        (r"acc-([0-9.]+)", "acc-88.5", 88.5),
    ],
)
def test_a_number_as_it_is_printed(pattern, line, score):
    assert [reading.value for reading in readings(pattern, line)] == [score]


@pytest.mark.parametrize(
    ("pattern", "line", "message"),
    [
        ("mse ([0-9.]+)", "test mse 9.63e-03 ok", r"score '9.63': is a part of '9.63e-03', .*write the group as \(\[-\+0-9.eE\]\+\)"),
        ("final: ([0-9.]+)", "final: 2,6300", "score '2': is a part of '2,6300'"),
        ("final: ([0-9.]+)", "final: 2,630.12", "score '2': is a part of '2,630.12'"),
        ("acc.*([0-9.]+)", "acc 97.18", "score '8': is a part of '97.18'"),
        ("reward.*?([0-9.]+)", "reward -3.5", "score '3.5': is a part of '-3.5'"),
        (r"acc (\d\.\d\d)", "acc 0.123456", "score '0.12': is a part of '0.123456'"),
        ("acc ([0-9.,]+)", "acc 97,18", "score '97,18': .* is no number"),
    ],
)
def test_a_part_of_a_number_is_refused(pattern, line, message):
    with pytest.raises(RunFailed, match=message):
        readings(pattern, line)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("acc [0-9]+", "has no group"),
        ("(?P<scor>[0-9.]+)", "unknown group 'scor': did you mean 'score'"),
        (r"epoch (?P<epoch>\d+) loss (?P<loss>[0-9.]+)", "no group is the score"),
    ],
)
def test_a_pattern_without_a_score_is_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        compiled(pattern)
