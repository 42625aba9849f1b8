import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.curvature.bowls import Bowl, Everything, RunsOut, batches_of, network, output, samples
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.curvature import path
from bigbatch.curvature.landscape.path import mixed, shares
from bigbatch.layers import recompute_statistics

BATCHES = batches_of(2.0, 6.0)
START, END = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}, {"w": torch.tensor([3.0, 1.0], dtype=torch.float64)}


def states():
    """Of one network with batch norms, trained a little from two seeds."""
    found = []
    for seed in (0, 1):
        model = network()
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        for _ in range(3 + seed):
            model.train()(torch.randn(16, 4) * (1 + seed))
        found.append({key: value.clone() for key, value in model.state_dict().items()})
    return found


def loss_of(state, batches):
    model = network()
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        found = [(F.cross_entropy(model(x), y, reduction="sum").item(), (model(x).argmax(1) == y).sum().item(), len(y)) for x, y in batches]
    losses, right, n = (sum(column) for column in zip(*found, strict=True))
    return losses / n, right / n


def test_a_straight_path_over_a_bowl_is_a_parabola():
    found = path(Bowl(0.0, 0.0), START, END, output, BATCHES)
    a = np.linspace(-1, 2, 25)
    np.testing.assert_allclose(found.alphas, a, atol=1e-15)
    np.testing.assert_allclose(found.losses, (1 + 2 * a) ** 2 + 3 * (-2 + 3 * a) ** 2, rtol=1e-12)
    assert found.scores is None


def test_an_arc_over_a_bowl():
    found = path(Bowl(0.0, 0.0), START, END, output, BATCHES, bend="arc", points=7)
    a = np.linspace(-1, 2, 7) * math.pi / 2
    first, second = np.cos(a) + 3 * np.sin(a), -2 * np.cos(a) + np.sin(a)
    np.testing.assert_allclose(found.losses, first**2 + 3 * second**2, rtol=1e-12)


@given(st.floats(-1, 2), st.sampled_from([None, "arc"]))
def test_shares_are_those_of_the_formula_and_exact_at_the_ends(a, bend):
    expected = (math.cos(a * math.pi / 2), math.sin(a * math.pi / 2)) if bend else (1 - a, a)
    assert tuple(shares(a, bend)) == pytest.approx(expected, abs=1e-12)
    assert [tuple(shares(end, bend)) for end in (0.0, 1.0)] == [(1, 0), (0, 1)]


def test_an_end_is_taken_as_it_is():
    odd = torch.tensor([float("inf"), 1e38, 1e-45])
    one, other = shares(0.0), shares(1.0)
    assert torch.equal(mixed(odd, torch.full((3,), float("nan")), one), odd)
    assert torch.equal(mixed(torch.full((3,), float("nan")), odd, other), odd)
    assert mixed(torch.tensor([1e38]), torch.tensor([-1e38]), shares(2.0)).item() == pytest.approx(-3e38)  # not by way of infinity


@pytest.mark.parametrize("bend", [None, "arc"])
def test_without_preparation_the_ends_are_the_checkpoints(bend):
    (start, end), batches = states(), samples()
    found = path(network(), start, end, F.cross_entropy, batches, scores=lambda o, y: (o.argmax(1) == y).float(), bend=bend, micro_batch=3)
    for a, state in ((0.0, start), (1.0, end)):
        at = found.alphas.index(a)
        loss, accuracy = loss_of(state, batches)
        assert found.losses[at] == pytest.approx(loss, rel=1e-6)
        assert found.scores[at] == pytest.approx(accuracy)
    assert all(map(math.isfinite, found.losses))  # a variance on a straight line beyond the ends would be negative


@pytest.mark.parametrize("score", [lambda o, y: o.argmax(1) == y, lambda o, y: (o.argmax(1) == y).float().mean()], ids=["bool", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_scores_are_counted_once_however_often_the_loss_is_called(score, reduction):
    (start, end), batches = states(), samples()
    found = path(network(), start, end, torch.nn.CrossEntropyLoss(reduction=reduction), batches, scores=score, points=[0, 1])
    assert found.scores == pytest.approx([loss_of(state, batches)[1] for state in (start, end)])


def test_a_score_of_another_shape_is_refused():
    (start, end), batches = states(), samples()
    with pytest.raises(UserError, match="score of batch 0 is of shape"):
        path(network(), start, end, F.cross_entropy, batches, scores=lambda o, y: o)


def test_running_statistics_stay_within_the_ends_and_numbers_are_the_nearer_ones():
    start, end = states()
    start["1.running_var"] *= 0.01
    before, after = {}, {}
    path(network(), start, end, F.cross_entropy, samples(), points=[-1], prepare=lambda m: before.update(copied(m)))
    path(network(), start, end, F.cross_entropy, samples(), points=[0.75], prepare=lambda m: after.update(copied(m)))
    assert torch.equal(before["1.running_var"], start["1.running_var"])
    assert before["1.num_batches_tracked"] == start["1.num_batches_tracked"]
    torch.testing.assert_close(after["1.running_var"], 0.25 * start["1.running_var"] + 0.75 * end["1.running_var"])
    assert after["1.num_batches_tracked"] == end["1.num_batches_tracked"] != start["1.num_batches_tracked"]
    torch.testing.assert_close(before["0.weight"], 2 * start["0.weight"] - end["0.weight"])


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_statistics_are_computed_anew_at_each_point():
    (start, end), batches = states(), samples()
    found = path(network(), start, end, F.cross_entropy, batches, points=[0, 0.5], prepare=lambda m: recompute_statistics(m, batches))
    for a, loss in zip(found.alphas, found.losses, strict=True):
        model = network()
        model.load_state_dict({key: torch.lerp(start[key].double(), end[key].double(), a).to(start[key].dtype) for key in start})
        recompute_statistics(model, batches)
        assert loss == pytest.approx(loss_of(model.state_dict(), batches)[0], rel=1e-5)


def test_weights_that_are_shared_stay_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    other = copied(model)
    other["0.weight"] = other["1.weight"] = other["0.weight"] + 1
    batches = [(x, torch.randint(4, (len(x),))) for x, _ in samples()]
    found = path(model, model.state_dict(), other, F.cross_entropy, batches, points=[0.0, 1.0])
    model.load_state_dict(other)
    x, y = (torch.cat(column) for column in zip(*batches, strict=True))
    assert found.losses[1] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)


def test_all_is_left_as_found():
    model, (start, end) = network(), states()

    def prepare(between):
        between.train()(torch.randn(8, 4))
        torch.manual_seed(5)

    def fails(between):
        raise KeyboardInterrupt

    with Everything(model):
        path(model, start, end, F.cross_entropy, samples(), points=3, prepare=prepare)
    with Everything(model), pytest.raises(KeyboardInterrupt):
        path(model, start, end, F.cross_entropy, samples(), prepare=fails)
    with Everything(model), pytest.raises(KeyboardInterrupt):
        path(model, start, end, RunsOut(F.cross_entropy, 4), samples())


def test_a_frozen_model_has_paths_too_and_progress_is_told():
    model, told = Bowl(0.0, 0.0).requires_grad_(False), []
    found = path(model, START, END, output, BATCHES, points=[0], progress=lambda *at: told.append(at))
    assert found.losses == pytest.approx((13.0,))
    assert told == [(1, 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_state": {}}, "end_state: lacks w; give two states of this very model"),
        ({"start_state": START | {"v": START["w"]}}, "start_state: has what the model has not, v; give"),
        ({"end_state": {"w": torch.zeros(3)}}, "end_state: w is of shape .*3.*, and in the model .2,.; give"),
        ({"end_state": {"w": 3}}, "end_state: w is of shape None"),
        ({"points": 0}, "points = 0: must be one at least, all of them finite; the paper's are 25"),
        ({"points": -3}, "points = -3"),
        ({"points": [0.0, math.nan]}, "all of them finite"),
        ({"bend": "bow"}, "bend = 'bow': must be \"arc\" or None"),
        ({"batches": []}, "batches: none; give at least one"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    arguments = {"start_state": START, "end_state": END, "loss": output, "batches": BATCHES} | changes
    with pytest.raises(UserError, match=message):
        path(Bowl(0.0, 0.0), **arguments)
