import pytest
import torch
import torch.nn.functional as F
from tests.curvature.bowls import Bowl, Everything, batches_of, network, output, samples
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.curvature import adaptive_sharpness, sam_sharpness
from bigbatch.curvature.landscape.adaptive_sharpness import scale_of


class Plane(nn.Module):
    """x . w, whose rise in an ellipsoid is known: rho |T x|."""

    def __init__(self, *weights):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x):
        return x @ self.w


def test_hand_worked():  # T = (2, 4): rho |T x| = 0.1 |(6, 8)| = 1; with eta = 1, T = (3, 5): 0.1 |(9, 10)|
    model, batches = Plane(2.0, -4.0), [(torch.tensor([[3.0, 2.0]], dtype=torch.float64), torch.zeros(1))]
    assert adaptive_sharpness(model, output, batches, rho=0.1, eta=0.0).value == pytest.approx(1)
    assert adaptive_sharpness(model, output, batches, rho=0.1, eta=1.0).value == pytest.approx(0.1 * 181**0.5)
    assert scale_of(torch.tensor([-2.0]), 0.5).item() == 2.5


def test_eta_alone_is_the_plain_one():  # all weights zero: T = eta
    model, batches = Bowl(0.0, 0.0), batches_of(1.0, 4.0)
    with torch.no_grad():
        model.w += 1e-9
    adaptive = adaptive_sharpness(model, output, batches, rho=0.5, eta=0.2, steps=30)
    assert adaptive.value == pytest.approx(sam_sharpness(model, output, batches, rho=0.1, steps=30).value, rel=1e-5)
    assert adaptive.value == pytest.approx(0.02, rel=1e-5)


def test_scaling_layers_against_each_other_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    batches = [(x.double(), y) for x, y in samples()]
    before = adaptive_sharpness(model, F.cross_entropy, batches, eta=0.0, m=5, steps=3)
    plain = sam_sharpness(model, F.cross_entropy, batches)
    with torch.no_grad():
        model[0].weight.mul_(8)
        model[2].weight.div_(8)
    after = adaptive_sharpness(model, F.cross_entropy, batches, eta=0.0, m=5, steps=3)
    assert after == pytest.approx(before, rel=1e-10)
    assert abs(sam_sharpness(model, F.cross_entropy, batches).value / plain.value - 1) > 0.1


def test_weights_at_zero_stay_without_eta():
    found = adaptive_sharpness(Plane(0.0, 1.0), output, [(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1))], rho=0.1, eta=0.0)
    assert found.value == pytest.approx(0.1)


def test_chosen_parameters_alone_move_and_all_is_left_as_found():
    model = network()
    with Everything(model):
        whole = adaptive_sharpness(model, F.cross_entropy, samples())
        part = adaptive_sharpness(model, F.cross_entropy, samples(), parameters=model[0].parameters())
    assert 0 < part.value < whole.value


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="eta = -1: must be zero or a finite number above it"):
        adaptive_sharpness(Bowl(1.0), output, batches_of(1.0), eta=-1)
