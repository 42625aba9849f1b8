import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curvature.bowls import Bowl, Everything, RunsOut, batches_of, network, output, samples, smooth_network

from bigbatch.core.checks import UserError
from bigbatch.curvature import keskar_sharpness
from bigbatch.curvature.landscape.sharpness import half_width, highest_in_box, phi


def test_hand_worked():  # f = (2 w1^2 + 6 w2^2)/2 at (1, -2) is 13; to the corner (1 + 2/10, -2 - 3/10): (2.88 + 31.74)/2 = 17.31
    found = keskar_sharpness(Bowl(1.0, -2.0), output, batches_of(2.0, 6.0), epsilon=0.1)
    assert found.loss == pytest.approx(13)
    assert found.highest == pytest.approx(17.31)
    assert found.value == pytest.approx(100 * 4.31 / 14)
    assert found.at_bound == 1
    assert (phi(0.5, 2.0), half_width(torch.tensor([-3.0]), 0.5).item()) == (100.0, 2.0)


def test_leaves_a_minimum_where_the_gradient_is_zero():  # at 0 the box is epsilon: (2 + 6)/2 * 1e-6
    found = keskar_sharpness(Bowl(0.0, 0.0), output, batches_of(2.0, 6.0))
    assert found.loss == 0
    assert found.value == pytest.approx(100 * 4e-6)


@pytest.mark.parametrize("steepness", [1e-12, 1.0, 1e6])
def test_a_flat_minimum_is_searched_as_well_as_a_steep_one(steepness):
    h = [steepness * (1 + i) for i in range(20)]
    found = keskar_sharpness(Bowl(*[0.0] * 20), output, batches_of(*h), epsilon=1e-3)
    assert found.highest == pytest.approx(sum(h) / 2 * 1e-6, rel=1e-6)


def test_where_the_loss_falls_it_stays():  # a saddle: up along w1, down along w2, where y = 0 is best
    found = keskar_sharpness(Bowl(0.0, 0.0), output, batches_of(2.0, -1.0), epsilon=0.1, iterations=30)
    assert found.highest == pytest.approx(0.01, rel=1e-4)
    assert found.at_bound == 0.5


def test_at_a_maximum_nothing_rises():
    found = keskar_sharpness(Bowl(0.0, 0.0), output, batches_of(-2.0, -1.0))
    assert (found.value, found.highest, found.at_bound) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_in_a_subspace_it_is_the_best_corner(seed):
    x, h = (torch.tensor(values, dtype=torch.float64) for values in ((1, -2, 0, 3, 0.5), (1, 2, 3, 4, 5)))
    p, epsilon = 3, 0.02
    A = torch.randn(5, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = epsilon * ((torch.linalg.pinv(A) @ x).abs() + 1)
    corners = [x + A @ (half * torch.tensor(signs)) for signs in itertools.product([-1.0, 1.0], repeat=p)]
    best = max(float((h * corner.square()).sum() / 2) for corner in corners)
    found = keskar_sharpness(Bowl(*x.tolist()), output, batches_of(*h.tolist()), epsilon=epsilon, subspace=p, seed=seed)
    assert found.highest == pytest.approx(best, rel=1e-9)


@settings(max_examples=30)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.data(), st.floats(1e-4, 0.1))
def test_the_corner_away_from_zero_is_found_wherever_a_bowl_stands(h, data, epsilon):
    x = data.draw(st.lists(st.floats(-5, 5), min_size=len(h), max_size=len(h)))
    found = keskar_sharpness(Bowl(*x), output, batches_of(*h), epsilon=epsilon, iterations=20)
    corner = sum(hi * (abs(xi) + epsilon * (abs(xi) + 1)) ** 2 for hi, xi in zip(h, x, strict=True)) / 2
    assert found.highest <= corner * (1 + 1e-9)
    assert found.highest >= corner * (1 - 0.02)  # where x_i is near 0 both its sides are nearly alike


def test_a_network_is_searched_to_the_end():
    """Ten iterations come as far as steps to the corner that the gradient points at, repeated until they stop."""
    case = smooth_network()
    x, y = case.x, case.y
    found = keskar_sharpness(case.model, case.loss, case.batches, epsilon=0.02, starts=1)
    weights = list(case.model.parameters())
    start, best = [w.detach().clone() for w in weights], 0.0
    for _ in range(30):
        value = case.loss(case.model(x), y).mean()
        best = max(best, value.item())
        for w, at, slope in zip(weights, start, torch.autograd.grad(value, weights), strict=True):
            w.data = at + 0.02 * (at.abs() + 1) * slope.sign()
    assert found.highest >= 0.99 * best
    assert found.evaluations <= 30


def test_cuts_and_kinds_of_loss_do_not_matter():
    case, settings = smooth_network(), {"iterations": 3, "subspace": 5}
    whole = keskar_sharpness(case.model, case.loss, [(case.x, case.y)], **settings)
    cut = keskar_sharpness(case.model, F.cross_entropy, case.batches, micro_batch=4, **settings)
    assert cut.value == pytest.approx(whole.value, rel=1e-8)
    assert whole.value == keskar_sharpness(case.model, case.loss, [(case.x, case.y)], **settings).value
    assert whole.value != keskar_sharpness(case.model, case.loss, [(case.x, case.y)], seed=1, **settings).value


def test_chosen_parameters_alone_move():
    model = Bowl(1.0, -2.0)
    model.idle = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    found = keskar_sharpness(model, output, batches_of(2.0, 6.0), epsilon=0.1, parameters=[model.w])
    assert found.highest == pytest.approx(17.31)
    assert found.at_bound == 1
    assert keskar_sharpness(model, output, batches_of(2.0, 6.0), epsilon=0.1).at_bound == pytest.approx(2 / 3)


@pytest.mark.parametrize("settings", [{}, {"subspace": 4}])
def test_all_is_left_as_found(settings):
    model = network()
    with Everything(model):
        first = keskar_sharpness(model, F.cross_entropy, samples(), **settings)
        assert first.value > 0
    for calls in (1, 3, 5):
        with Everything(model), pytest.raises(KeyboardInterrupt):
            keskar_sharpness(model, RunsOut(F.cross_entropy, calls), samples(), **settings)


def test_progress_is_told():
    told = []
    found = keskar_sharpness(Bowl(1.0), output, batches_of(2.0), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (found.evaluations, None)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon = 0.0: must be a finite number above zero; the paper's are"),
        ({"epsilon": float("nan")}, "epsilon = nan"),
        ({"iterations": 0}, "iterations = 0: must be at least 1"),
        ({"subspace": 3}, "subspace = 3: must be from 1 to the 2 parameters; leave it out"),
        ({"subspace": 0}, "subspace = 0"),
        ({"batches": []}, "batches: none; give at least one"),
        ({"batches": batches_of(float("nan"), 1.0)}, "loss of batch 0 is nan"),
        ({"loss": lambda outputs, _: outputs[:, None]}, "must be one a sample"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    arguments = {"loss": output, "batches": batches_of(1.0, 1.0)} | settings
    with pytest.raises(UserError, match=message):
        keskar_sharpness(Bowl(1.0, 1.0), **arguments)


def test_a_loader_that_shuffles_is_found_out():
    x = torch.randn(8, 2, dtype=torch.float64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(8)), 4, shuffle=True)
    with pytest.raises(UserError, match="is not what it was at the first pass"):
        keskar_sharpness(Bowl(1.0, 1.0), output, loader)


def test_the_search_itself_counts_what_it_saw_best():
    y = highest_in_box(lambda y: (-float(((y - 0.3) ** 2).sum()), -2 * (y - 0.3)), np.ones(3), iterations=20).y
    np.testing.assert_allclose(y, 0.3, atol=1e-3)


class Coupled(torch.nn.Module):
    """w' H w / 2, whatever the sample."""

    def __init__(self, H):
        super().__init__()
        self.register_buffer("H", H)
        self.w = torch.nn.Parameter(torch.zeros(len(H), dtype=H.dtype))

    def forward(self, x):
        return (self.w @ self.H @ self.w / 2).expand(len(x))


def test_several_starts_come_nearer_to_the_best_corner_and_say_how_far_apart_they_ended():
    """At a minimum of a bowl the largest value is at a corner: all 1,024 are tried. What one start finds depends on its seed."""
    root = torch.randn(10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    H = root @ root.T
    epsilon = 0.1
    corners = epsilon * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10)), dtype=torch.float64)
    exact = 100 * float(torch.einsum("ci,ij,cj->c", corners, H, corners).max() / 2)
    model, batches = Coupled(H), [(torch.zeros(2, 1), torch.zeros(2))]
    single = [keskar_sharpness(model, output, batches, epsilon=epsilon, starts=1, seed=seed).value for seed in range(6)]
    assert min(single) < 0.98 * exact  # what a seed decided
    found = [keskar_sharpness(model, output, batches, epsilon=epsilon, starts=8, seed=seed) for seed in range(4)]
    assert max(each.value for each in found) == pytest.approx(exact, rel=1e-6)
    for each in found:
        assert 0.97 * exact < each.value < exact * (1 + 1e-6)
        assert each.value == max(each.starts)
        assert len(each.starts) == 8
        assert each.spread == pytest.approx(max(each.starts) - min(each.starts))
    assert max(each.spread for each in found) > 0.02 * exact
    usual = keskar_sharpness(model, output, batches, epsilon=epsilon)
    assert (len(usual.starts), usual.starts[0]) == (3, pytest.approx(single[0]))
