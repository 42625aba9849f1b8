import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.parameter_server.staleness import DAMPINGS, damped, damping_factor
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert [damping_factor(tau, "inverse") for tau in (0, 1, 2, 8)] == [1.0, 1.0, 0.5, 0.125]
    assert [damping_factor(tau, "inverse_plus_one") for tau in (0, 1, 3)] == [1.0, 0.5, 0.25]
    assert damped([1.0], [4], "inverse") == (0.25, [1.0])
    assert damped([0.25, 0.75], [1, 2], "inverse").factor == 0.25 + 0.375


@given(
    gradients=st.lists(st.tuples(st.floats(0.01, 4), st.integers(0, 50)), min_size=1, max_size=5),
    damping=st.sampled_from(DAMPINGS),
)
def test_factor_times_weight_is_each_gradients_own(gradients, damping):
    weights, staleness = [w for w, _ in gradients], [tau for _, tau in gradients]
    got = damped(weights, staleness, damping)
    assert sum(got.weights) == pytest.approx(sum(weights))
    for weight, tau, mine in zip(weights, staleness, got.weights, strict=True):
        assert got.factor * mine == pytest.approx(weight * damping_factor(tau, damping))


def test_an_unknown_damping():
    with pytest.raises(UserError, match="unknown damping 'invers': did you mean 'inverse'"):
        damping_factor(1, "invers")
