import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bigbatch import Recipe, fit, plan
from bigbatch.core.checks import RecipeError, UserError
from bigbatch.core.clock import Clock
from bigbatch.noise.multiplicative_noise import noise_factors, noise_variance
from bigbatch.tasks import load_task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.data.shares import Share, Work, work_of
from bigbatch.train.update.batches import UpdateBatches
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients

RECIPE = Recipe.named("digits/mlp").replace({"batch.global_batch": 256, "batch.noise_batch": 16, "batch.micro_batch": 64})


def test_hand_worked():  # 2,048 samples as noisy as 128: (1 + sigma^2)/2048 = 1/128, so sigma^2 = 15
    assert noise_variance(2048, 128) == 15
    assert noise_variance(128, 128) == 0
    assert noise_factors(100, 200, seed=0, start=0).tolist() == [1.0] * 100


@given(batch=st.integers(1, 10_000), noise_batch=st.integers(1, 10_000))
def test_the_noise_is_the_small_batchs_or_the_batchs_own(batch, noise_batch):
    assert (1 + noise_variance(batch, noise_batch)) / batch == pytest.approx(1 / min(batch, noise_batch))


def test_the_gradient_is_unbiased_and_its_covariance_a_small_batchs():
    """Gradients of three dimensions with a mean; 4,000 batches, within 4 standard errors."""
    m, small, draws = 64, 8, 4000
    rng = np.random.default_rng(0)
    mean, root = np.array([0.5, -1.0, 0.0]), np.array([[1.0, 0, 0], [0.5, 2.0, 0], [0, 0.3, 0.5]])
    estimates = []
    for i in range(draws):
        g = mean + rng.standard_normal((m, 3)) @ root.T
        estimates.append(noise_factors(m, small, seed=1, start=i * m).numpy() @ g / m)
    expected = root @ root.T / small + (1 / small - 1 / m) * np.outer(mean, mean)
    error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / draws)
    assert (np.abs(np.mean(estimates, 0) - mean) < 4 * np.sqrt(np.diag(expected) / draws)).all()
    assert (np.abs(np.cov(np.transpose(estimates)) - expected) < 4 * error).all()


def test_updates_and_seeds_have_factors_of_their_own_and_get_them_again():
    one = noise_factors(64, 8, seed=0, start=0)
    assert torch.equal(one, noise_factors(64, 8, seed=0, start=0))
    assert not torch.equal(one, noise_factors(64, 8, seed=1, start=0))
    assert not torch.equal(one, noise_factors(64, 8, seed=0, start=64))


@pytest.mark.parametrize(("workers", "micro_batch"), [(1, 256), (1, 48), (3, 256), (4, 20)])
def test_the_same_update_however_it_is_cut(workers, micro_batch):
    task, clock = load_task("digits/mlp"), Clock(512, 2)
    train = task.splits().train
    torch.manual_seed(0)
    model = task.model().double()
    index = sample_indices(0, len(train), clock.samples, 256)
    z = noise_factors(256, 16, seed=0, start=512).double()
    inputs, targets = (t[index] for t in train.tensors)
    (task.losses(model(inputs.double()), targets) * z).mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for rank in range(workers):
        work = work_of(256, rank, workers, micro_batch=micro_batch, ghost_batch=None)
        mine = index[work.share.start :][: work.share.num_samples]
        stream = load_micro_batches(train, mine.split(work.sizes), device=torch.device("cpu"), dtype=torch.float64)
        passes = UpdateBatches(RECIPE).of_update(stream, clock, 256, work)
        accumulate_gradients(model, task, passes, divisor=256, precision="float64", device=torch.device("cpu"))
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, q, rtol=1e-10, atol=1e-12)


def test_idle_passes_take_no_factors():
    class Squares:
        def losses(self, outputs, targets):
            return outputs.square().flatten()

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    pieces = [(torch.full((2, 1), 9.0), torch.zeros(2)), (torch.ones(1, 1), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    recipe, work, clock = RECIPE.replace({"batch.noise_batch": 1}), Work(Share(0, 2), [2, 1, 1], idle=1), Clock(512, 2)
    passes = list(UpdateBatches(recipe).of_update(iter(pieces), clock, 2, work))
    z = noise_factors(2, 1, seed=0, start=512).tolist()
    assert [passes[0].weight, *(float(p.weight) for p in passes[1:])] == [1.0, *z]
    passes = [passes[0], *(Pass(p.inputs, p.targets, weight) for p, weight in zip(passes[1:], torch.tensor([[3.0], [5.0]]), strict=True))]
    settings = {"divisor": 1.0, "precision": "float32", "device": torch.device("cpu"), "idle": 1}
    assert accumulate_gradients(model, Squares(), passes, **settings) == 2  # losses are as they are
    assert model.weight.grad.item() == 2 * 3 + 2 * 5


@pytest.mark.bit_for_bit
def test_a_run_with_it_differs_and_is_repeated_by_its_seed():
    recipe = RECIPE.replace({"budget.epochs": 1})
    quiet = {"quiet": True, "tensorboard": False}
    losses = [fit("digits/mlp", r, **quiet).test_loss for r in (recipe, recipe, recipe.replace({"batch.noise_batch": None}))]
    assert losses[0] == losses[1] != losses[2]


def test_what_it_does_not_go_with():
    with pytest.raises(RecipeError, match=r"batch.noise_batch = 512: must be smaller than global_batch = 256"):
        RECIPE.replace({"batch.noise_batch": 512})
    with pytest.raises(RecipeError, match=r'noise_batch = 16: is not known to the workers of comm.kind = "parameter_server"'):
        RECIPE.replace({"comm": {"kind": "parameter_server"}})
    with pytest.raises(UserError, match="noise_batch = 0: must be a finite number above zero"):
        noise_variance(128, 0)
    assert plan(RECIPE, global_batch=16, rule="none").recipe.batch.noise_batch is None
    assert plan(RECIPE, global_batch=1024, rule="none").recipe.batch.noise_batch == 16
