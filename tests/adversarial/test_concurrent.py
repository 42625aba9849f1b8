import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.concurrent_adversarial import concurrent_adversarial
from torch import nn

from bigbatch.adversarial import Attack, ConAdv, loss_weights, share_at
from bigbatch.adversarial.concurrent import made_here
from bigbatch.core.checks import UserError

EPS, LOW, HIGH, LR, MOMENTUM = 0.1, 0.0, 1.0, 0.5, 0.9


def losses(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def problem(updates=100, n=8, features=5, classes=3):
    rng = np.random.default_rng(0)
    W = rng.normal(size=(classes, features))
    return W, [(rng.uniform(size=(n, features)), rng.integers(classes, size=n)) for _ in range(updates)]


def as_tensors(batches):
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches]


class Run:
    """A loop of one's own."""

    def __init__(self, W, tau):
        self.model = nn.Linear(W.shape[1], W.shape[0], bias=False).double()
        with torch.no_grad():
            self.model.weight.copy_(torch.from_numpy(W))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        self.conadv = ConAdv(made_here(Attack(self.model, losses)), eps=EPS, low=LOW, high=HIGH, tau=tau)

    def update(self, twins, weights):
        (weights.clean * losses(self.model(twins.inputs), twins.targets).mean()).backward()
        (weights.adversarial * losses(self.model(twins.adversarial), twins.targets).mean()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.model.weight.detach().numpy()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_equals_the_pseudo_code_for_100_updates(tau, reduction):
    W, batches = problem()
    run, weights = Run(W, tau), loss_weights(reduction, 1.0)
    clean, adversarial = (1.0, 1.0) if reduction == "sum" else (0.5, 0.5)
    settings = {"eps": EPS, "low": LOW, "high": HIGH, "tau": tau, "lr": LR, "momentum": MOMENTUM}
    expected = concurrent_adversarial(W, batches, clean=clean, adversarial=adversarial, **settings)
    updates = 0
    for twins, theta in zip(run.conadv.over(as_tensors(batches)), expected, strict=True):
        np.testing.assert_allclose(run.update(twins, weights), theta, rtol=0, atol=1e-12)
        updates += 1
    assert updates == 100
    assert len(run.conadv) == 0


def test_tau_changes_what_is_trained():
    W, batches = problem(10)
    ends = []
    for tau in (0, 1, 2):
        run = Run(W, tau)
        for twins in run.conadv.over(as_tensors(batches)):
            end = run.update(twins, loss_weights("mean", 1.0)).copy()
        ends.append(end)
    assert not np.allclose(ends[0], ends[1])
    assert not np.allclose(ends[1], ends[2])


def test_examples_are_of_the_very_view_that_is_trained_on():
    """A loader that augments anew whenever it is read: it is read once, and twins differ by the step alone."""
    W, batches = problem(12)
    generator, reads = torch.Generator().manual_seed(0), []

    def augmenting():
        for x, y in as_tensors(batches):
            reads.append(1)
            yield torch.rand(x.shape, generator=generator, dtype=torch.float64), y

    run = Run(W, 2)
    for twins in run.conadv.over(augmenting()):
        away = (twins.adversarial - twins.inputs).abs()
        assert float(away.max()) <= EPS + 1e-12
        assert float(away.median()) == pytest.approx(EPS)
        run.update(twins, loss_weights("mean", 1.0))
    assert len(reads) == 12


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_an_epoch_drains_the_buffer_and_uses_every_batch_once(length):
    W, batches = problem(length)
    run = Run(W, 2)
    for _ in range(2):  # epochs
        seen = [twins.inputs for twins in run.conadv.over(as_tensors(batches))]
        assert len(seen) == length
        assert all(torch.equal(x, torch.from_numpy(batch[0])) for x, batch in zip(seen, batches, strict=True))
        assert len(run.conadv) == 0
    assert run.conadv.number == 2 * length


def test_a_resumed_run_is_the_same_to_the_last_bit():
    W, batches = problem(10)
    tensors, weights = as_tensors(batches), loss_weights("sum", 1.0)

    def reader(run, start):
        rest = iter(tensors[start:])
        return lambda: [batch] if (batch := next(rest, None)) is not None else None

    whole = Run(W, 2)
    for twins in whole.conadv.over(tensors):
        end = whole.update(twins, weights).copy()
    first = Run(W, 2)
    read = reader(first, 0)
    for _ in range(4):
        first.update(first.conadv.next_update(read)[0], weights)
    state = first.conadv.state_dict()
    assert (state["number"], len(state["ahead"])) == (6, 2)  # two updates are held
    second = Run(W, 2)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.conadv.load_state_dict(state)
    read = reader(second, 6)
    while (twins := second.conadv.next_update(read)) is not None:
        again = second.update(twins[0], weights)
    assert np.array_equal(again, end)


def test_an_update_in_pieces_is_made_from_one_set_of_weights():
    W, batches = problem(6)
    whole, cut, weights = Run(W, 1), Run(W, 1), loss_weights("mean", 1.0)
    pieces = iter([[(x[:3], y[:3]), (x[3:], y[3:])] for x, y in as_tensors(batches)])
    for twins in whole.conadv.over(as_tensors(batches)):
        parts = cut.conadv.next_update(lambda: next(pieces, None))
        torch.testing.assert_close(torch.cat([part.adversarial for part in parts]), twins.adversarial, rtol=0, atol=0)
        whole.update(twins, weights)
        with torch.no_grad():
            cut.model.weight.copy_(whole.model.weight)


def test_the_loss_rises_on_examples_of_the_present_weights():
    W, batches = problem(5)
    run = Run(W, 0)
    for twins in run.conadv.over(as_tensors(batches)):
        clean, adversarial = (losses(run.model(x), twins.targets).mean() for x in (twins.inputs, twins.adversarial))
        assert adversarial > clean


def test_weights_hand_worked():
    assert loss_weights("sum", 0.5) == (1.0, 0.5)
    assert loss_weights("mean", 0.5) == (1 / 1.5, 0.5 / 1.5)


@given(st.floats(0.0, 1.0))
def test_the_mean_weighs_one_and_keeps_the_sums_proportion(share):
    mean, total = loss_weights("mean", share), loss_weights("sum", share)
    assert mean.clean + mean.adversarial == pytest.approx(1.0)
    assert mean.adversarial * total.clean == pytest.approx(mean.clean * total.adversarial)


def test_share_hand_worked():
    settings = {"share": 0.5, "full_until": 0.25, "off_at": 0.75}
    assert [share_at(p, **settings) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.5, 0.5, 0.25, 0.0, 0.0]
    assert [share_at(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]  # never off unless asked for
    assert [share_at(p, full_until=0.5, off_at=0.5) for p in (0.5, 0.501)] == [1.0, 0.0]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_share_never_rises(a, b, full_until, off_at):
    full_until, off_at = sorted((full_until, off_at))
    first, second = (share_at(p, full_until=full_until, off_at=off_at) for p in sorted((a, b)))
    assert 0 <= second <= first <= 1


def test_bad_settings_are_refused():
    maker = made_here(Attack(nn.Linear(1, 1), losses))
    with pytest.raises(UserError, match="tau = -1: weights of updates to come are not known; give 1, or 0 for DisAdv"):
        ConAdv(maker, eps=0.1, low=0.0, high=1.0, tau=-1)
    with pytest.raises(UserError, match="eps = 2: must be above zero and at most the data's range, from 0 to 1"):
        ConAdv(maker, eps=2.0, low=0.0, high=1.0)
    with pytest.raises(UserError, match="off_at = 0.2: must not come before full_until = 0.5"):
        share_at(0.0, full_until=0.5, off_at=0.2)
    with pytest.raises(UserError, match="share = 1.5: must lie from 0 to 1"):
        share_at(0.0, share=1.5)
