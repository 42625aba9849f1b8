import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.parameter_server.async_sgd import can_meet_deadlines, equivalent_settings, gradient_weights, largest_lr
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert gradient_weights([1, 3], "mean") == [0.25, 0.75]
    assert gradient_weights([1, 3], "sum") == [0.5, 1.5]
    assert equivalent_settings(0.8, 0.1, 2.0, num_gradients=4, reduction="sum") == (0.2, 0.4, 8.0)
    assert equivalent_settings(0.8, 0.1, 2.0, num_gradients=4, reduction="mean") == (0.8, 0.1, 2.0)


@pytest.mark.parametrize(("smoothness", "M", "T"), [(1.0, 1, 0), (2.0, 4, 1), (0.5, 3, 7), (10.0, 8, 100)])
def test_the_rate_is_the_largest_under_theorem_1(smoothness, M, T):
    def condition(gamma):  # L M gamma + 2 L^2 M^2 T gamma sum of the next T rates
        return smoothness * M * gamma + 2 * smoothness**2 * M**2 * T * gamma * sum(gamma for _ in range(T))

    assert condition(largest_lr(smoothness=smoothness, gradients_per_update=M, staleness_bound=T)) == pytest.approx(1.0)


@given(
    deadlines=st.lists(st.integers(3, 8), max_size=6),
    M=st.integers(1, 3),
    collected=st.integers(0, 2),
)
def test_the_bounds_can_be_kept_exactly_if_some_order_keeps_them(deadlines, M, collected):
    collected = min(collected, M - 1)

    def keeps(order):
        return all(3 + (collected + place) // M <= deadline for place, deadline in enumerate(order))

    some = any(keeps(order) for order in itertools.permutations(deadlines))
    assert can_meet_deadlines(deadlines, version=3, collected=collected, gradients_per_update=M) == some


@pytest.mark.parametrize(("clip_norm", "atol"), [(None, 1e-12), (0.7, 1e-5)])  # torch's clipping adds 1e-6 to the norm
def test_a_sum_with_its_settings_takes_the_steps_of_the_mean(clip_norm, atol):
    torch.manual_seed(0)
    ends, M = {}, 3
    gradients = torch.randn(20, M, 5, dtype=torch.float64)
    for reduction in ("mean", "sum"):
        p = torch.ones(5, dtype=torch.float64, requires_grad=True)
        settings = equivalent_settings(0.1, 0.01, clip_norm, num_gradients=M, reduction=reduction)
        optimizer = torch.optim.SGD([p], lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
        for each in gradients:
            weights = torch.tensor(gradient_weights([4, 4, 2], reduction), dtype=torch.float64)
            p.grad = (weights[:, None] * each).sum(0)
            torch.nn.utils.clip_grad_norm_([p], settings.clip_norm or float("inf"))
            optimizer.step()
        ends[reduction] = p.detach()
    torch.testing.assert_close(ends["sum"], ends["mean"], rtol=0, atol=atol)


def test_impossible_settings():
    with pytest.raises(UserError, match="smoothness = 0"):
        largest_lr(smoothness=0, gradients_per_update=1, staleness_bound=1)
