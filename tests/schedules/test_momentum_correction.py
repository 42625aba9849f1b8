from functools import partial

import pytest
import torch
from tests.reference.rate_in_buffer_sgd import RateInBufferSGD

from bigbatch.core.clock import Clock
from bigbatch.schedules import ClockLR, corrected_momentum, gradual_warmup


def test_hand_worked():  # Equation 10: eta from 0.1 to 0.3 makes 0.9 into 2.7 for one update; a ramp from zero leaves it
    assert corrected_momentum(0.9, lr=0.3, previous_lr=0.1) == pytest.approx(2.7)
    assert corrected_momentum(0.9, lr=0.1, previous_lr=0.1) == 0.9
    assert corrected_momentum(0.9, lr=0.1, previous_lr=0.0) == 0.9


class _RateInBuffer(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(group["momentum"]).add_(p.grad, alpha=group["lr"])
                p.sub_(v)


@pytest.mark.parametrize("corrected", [True, False])
def test_makes_rate_in_buffer_equal_to_torchs_sgd_through_a_warmup(corrected):
    """With the correction the two placements agree for 100 updates; without it they part (Goyal et al., Remark 2)."""
    schedule = partial(gradual_warmup, warmup_samples=60 * 8, start_factor=0.125)
    inside_w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    outside_w = inside_w.detach().clone().requires_grad_()
    inside, outside = _RateInBuffer([inside_w], 0.05, 0.9), torch.optim.SGD([outside_w], 0.05, 0.9)
    inside_lr = ClockLR(inside, schedule, global_batch=8, momentum_correction=corrected)
    outside_lr = ClockLR(outside, schedule, global_batch=8)
    reference = RateInBufferSGD(1.0)
    lr_before = 0.05 * schedule(Clock())
    for t in range(100):
        for w, optimizer, scheduler in ((inside_w, inside, inside_lr), (outside_w, outside, outside_lr)):
            w.grad = torch.tensor([1.0, 3.0], dtype=torch.float64) * w.detach()
            optimizer.step()
            scheduler.step()
        lr = 0.05 * schedule(Clock(samples=8 * t))
        reference.step(1.0 * reference.w, lr=lr, momentum=corrected_momentum(0.9, lr=lr, previous_lr=lr_before) if corrected else 0.9)
        lr_before = lr
    assert inside_w[0].item() == pytest.approx(reference.w, rel=1e-12)
    assert torch.allclose(inside_w, outside_w, rtol=1e-10, atol=0) is corrected
