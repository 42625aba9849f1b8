import math

import pytest
import torch
import torch.nn.functional as F
from tests.curvature.bowls import Bowl, Everything, RunsOut, batches_of, network, output, samples, smooth_network
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.curvature import sam_sharpness
from bigbatch.curvature.landscape.mean_loss import Landscape
from bigbatch.curvature.landscape.sam_sharpness import ascent_step, highest_in_ball


class Distance(nn.Module):
    """Half the squared distance of one weight, 0, from each sample."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return (self.w - x).square() / 2


def points(*batches):
    return [(torch.tensor(x, dtype=torch.float64), torch.zeros(len(x))) for x in batches]


def test_hand_worked():  # |w|^2 / 2 at (3, -4): 12.5; a step of 0.5 away from zero: 5.5^2 / 2 = 15.125
    found = sam_sharpness(Bowl(3.0, -4.0), output, batches_of(1.0, 1.0), rho=0.5)
    assert found.loss == pytest.approx(12.5)
    assert found.highest == pytest.approx(15.125)
    assert found.value == pytest.approx(2.625)
    assert (found.num_groups, found.evaluations) == (1, 2)


def test_groups_weigh_by_their_samples():  # each group of mean x rises by rho |x| + rho^2 / 2
    batches, rho = points([1.0, -3.0, 4.0], [2.0, -6.0]), 0.1
    expected = {None: 0.4, 1: 16 / 5, 2: (2 * 1 + 1 * 4 + 2 * 2) / 5, 3: (3 * 2 / 3 + 2 * 2) / 5}
    for m, slope in expected.items():
        assert sam_sharpness(Distance(), output, batches, rho=rho, m=m).value == pytest.approx(rho * slope + rho**2 / 2)
    assert sam_sharpness(Distance(), output, batches, m=2).num_groups == 3


def test_smaller_groups_are_sharper():
    case = smooth_network()
    values = [sam_sharpness(case.model, case.loss, [(case.x, case.y)], m=m).value for m in (60, 20, 5, 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(sam_sharpness(case.model, F.cross_entropy, case.batches, micro_batch=4).value, rel=1e-9)


def test_more_steps_find_the_steepest_direction():  # (1 w1^2 + 9 w2^2) / 2 near zero: 9/2 rho^2 along w2, which one step misses
    model, rho = Bowl(1e-3, 1e-4), 0.1
    one, many = (sam_sharpness(model, output, batches_of(1.0, 9.0), rho=rho, steps=steps).value for steps in (1, 20))
    assert one < 0.9 * many
    assert many == pytest.approx(4.5 * (rho + 1e-4) ** 2, rel=1e-3)
    values = [sam_sharpness(model, output, batches_of(1.0, 9.0), rho=rho, steps=steps).value for steps in range(1, 6)]
    assert values == sorted(values)


def test_where_one_step_overshoots_nothing_is_lost():  # along -w^2 / 2 from 0.1, rho = 1 leaps over the top
    assert sam_sharpness(Bowl(0.1), output, batches_of(-1.0), rho=1.0).value == 0


def test_a_step_stays_in_the_ball():
    d = ascent_step(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0]), 3.0)
    torch.testing.assert_close(d, torch.tensor([3.0, 3.0]) / math.sqrt(2))
    assert torch.equal(ascent_step(d, torch.zeros(2), 3.0), d)
    assert ascent_step(torch.zeros(2), torch.tensor([0.0, 2.0]), 3.0).tolist() == [0, 3]


def test_the_ball_alone():
    at = Landscape(Bowl(3.0, -4.0), output, batches_of(1.0, 1.0))
    assert highest_in_ball(at, rho=0.5) == pytest.approx((12.5, 15.125))


def test_all_is_left_as_found():
    model = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples()[0]), 4)  # draws a number as it starts
    with Everything(model):
        assert sam_sharpness(model, F.cross_entropy, loader, m=2).value > 0
    for calls in (1, 3, 5):
        with Everything(model), pytest.raises(KeyboardInterrupt):
            sam_sharpness(model, RunsOut(F.cross_entropy, calls), samples(), m=5)


def test_progress_is_told_by_group():
    told = []
    sam_sharpness(Distance(), output, points([1.0, 2.0, 3.0]), m=1, progress=lambda *at: told.append(at))
    assert told == [(1, None), (2, None), (3, None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.0}, "rho = 0.0: must be a finite number above zero; the paper's default"),
        ({"m": 0}, "m = 0: must be at least 1"),
        ({"m": 4}, "m = 4: no batch has so many samples, the largest has 3; give larger ones"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"scale": torch.zeros(1)}, "scale of shape .1,.: must be .2,. and above zero"),
        ({"scale": torch.tensor([1.0, 0.0])}, "above zero everywhere"),
        ({"batches": [], "m": 1}, "batches: none; give at least one"),
        ({"batches": []}, "batches: none; give at least one"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    arguments = {"loss": output, "batches": batches_of(1.0, 1.0)} | settings
    with pytest.raises(UserError, match=message):
        sam_sharpness(Bowl(1.0, 1.0), **arguments)
