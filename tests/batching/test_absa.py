import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.absa import absa as literal_absa

from bigbatch.batching import ABSA
from bigbatch.batching.absa import Standing, absa, grown_batch, share_left
from bigbatch.core.checks import UserError

POSITIVE = st.floats(1e-6, 1e6)
SEQUENCES = st.lists(POSITIVE, min_size=1, max_size=60) | st.lists(st.sampled_from([8.0, 5.0, 4.0, 2.0, 1.0]), min_size=1, max_size=90)


def walked(rule, eigenvalues, epochs):
    rows = []
    for epoch, eigenvalue in enumerate(eigenvalues, start=1):
        if rule.watching:
            rule.measured(eigenvalue)
        rows.append((rule.global_batch, 0.1 * rule.global_batch / 128, rule.share(epoch / epochs), rule.standing.reference))
    return rows


@given(SEQUENCES, st.integers(1, 15), st.sampled_from([1, 2, 8, 128]))
def test_equals_the_papers_pseudo_code(eigenvalues, period, max_ratio):
    rule = ABSA(global_batch=128, largest=128 * max_ratio, patience=period)
    expected = literal_absa(eigenvalues, epochs=len(eigenvalues), max_ratio=max_ratio, period=period)
    if max_ratio == 1:  # the rule sees from the start that nothing can grow; the code after the first epoch
        expected = [(batch, lr, 0, None) for batch, lr, *_ in [(128, 0.1)] * len(eigenvalues)]
    for mine, theirs in zip(walked(rule, eigenvalues, len(eigenvalues)), expected, strict=True):
        assert mine[:3] == pytest.approx(theirs[:3], rel=1e-12)
        assert max_ratio == 1 or mine[3] == theirs[3]


def test_by_hand():
    first = absa(Standing(), 8.0)
    assert first == Standing(8.0, 0, 1)
    assert absa(first, 4.0) == Standing(4.0, 1, 0)  # half is enough
    assert absa(first, 4.1) == Standing(8.0, 0, 2)
    assert absa(first, 80.0, rises=True) == Standing(80.0, 0, 2)
    assert absa(Standing(8.0, 2, 9), 80.0, rises=True) == Standing(8.0, 3, 0)  # the increase leaves the reference alone
    assert absa(Standing(8.0, 0, 1), 2.5, drop=3.0) == Standing(2.5, 1, 0)
    assert absa(Standing(8.0, 0, 8), 6.0, periods=3) == Standing(8.0, 1, 0)  # one increase, however long it took
    assert [grown_batch(128, k, 16_384) for k in (0, 1, 7, 8)] == [128, 256, 16_384, 16_384]
    assert grown_batch(64, 3, 5000, factor=1.5, multiple_of=32) == 224  # 216
    assert [share_left(0.2, k) for k in range(3)] == [0.2, 0.1, 0.05]


@given(SEQUENCES, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -3.0]), st.data())
def test_what_says_nothing_leaves_the_reference_and_lets_time_go_on(eigenvalues, nothing, data):
    where = data.draw(st.integers(0, len(eigenvalues)))
    standing = Standing()
    for eigenvalue in eigenvalues[:where]:
        standing = absa(standing, eigenvalue)
    after = absa(standing, nothing)
    assert after.reference == standing.reference or math.isnan(after.reference)
    due = standing.waited + 1 == 10
    assert (after.increases, after.waited) == (standing.increases + due, 0 if due else standing.waited + 1)


@given(SEQUENCES, st.booleans())
def test_one_increase_at_most_and_never_later_than_its_patience(eigenvalues, rises):
    standing, gap = Standing(), 0
    for eigenvalue in eigenvalues:
        before, standing = standing, absa(standing, eigenvalue, patience=4, rises=rises)
        assert standing.increases - before.increases in (0, 1)
        gap = 0 if standing.increases > before.increases else gap + 1
        assert gap < 4
        assert rises or math.isnan(before.reference) or standing.reference <= before.reference


def test_a_rising_reference_notices_a_fall_from_a_peak():
    falls, rises = ([], [])
    for grown, option in ((falls, False), (rises, True)):
        rule = ABSA(global_batch=128, largest=16_384, patience=100, rises=option)
        for eigenvalue in (4.0, 16.0, 7.0, 3.0):
            rule.measured(eigenvalue)
            grown.append(rule.global_batch)
    assert falls == [128, 128, 128, 128]
    assert rises == [128, 128, 256, 512]


def test_the_share_ends_at_half_of_the_run_and_at_the_largest_batch():
    rule = ABSA(global_batch=128, largest=512)
    assert [rule.share(p) for p in (0.0, 0.49, 0.5, 1.0)] == [0.2, 0.2, 0.0, 0.0]
    assert rule.measured(8.0) == "top eigenvalue 8, the first"
    assert rule.measured(1.0) == "top eigenvalue 1, reference 8: fallen to 1/2"
    assert (rule.global_batch, rule.share(0.0), rule.watching) == (256, 0.1, True)
    assert rule.measured(0.9, periods=12) == "top eigenvalue 0.9, reference 1: 12 periods without an increase"
    assert (rule.global_batch, rule.share(0.0), rule.watching) == (512, 0.0, False)


def test_the_last_increase_stops_at_the_largest_batch():
    rule = ABSA(global_batch=128, largest=1000, multiple_of=128, patience=1)
    batches = []
    while rule.watching:
        rule.measured(1.0)
        batches.append(rule.global_batch)
    assert batches == [256, 512, 896]


def test_goes_on_where_it_stood():
    first, second = (ABSA(global_batch=128, largest=16_384) for _ in range(2))
    for eigenvalue in (8.0, 3.0, 2.9):
        first.measured(eigenvalue)
    second.load_state_dict(first.state_dict())
    assert second.standing == first.standing == Standing(3.0, 1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"largest": 64}, "largest = 64: must be at least global_batch = 128"),
        ({"multiple_of": 96}, "global_batch = 128: must be a multiple of multiple_of = 96"),
        ({"patience": 0}, "patience = 0"),
        ({"drop": 1.0}, "drop = 1: must be a number above 1"),
        ({"factor": math.nan}, "factor = nan: must be a number above 1"),
        ({"share": 1.5}, "share = 1.5"),
        ({"off_at": -0.1}, "off_at = -0.1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(UserError, match=message):
        ABSA(**{"global_batch": 128, "largest": 16_384, **settings})
