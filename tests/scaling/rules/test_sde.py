import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scaling.published import PUBLISHED, shrinkage

from bigbatch import Recipe, plan
from bigbatch.core.checks import RecipeError
from bigbatch.scaling.rules.sde import beta_at, eps_at, largest_inside, outside


def test_hand_worked_for_a_published_recipe():
    """512 to 4,096 of AdamW at 3e-4, decay 0.1, betas 0.9 and 0.95: k = 8, whose root is 2.828427."""
    planned = plan(PUBLISHED, global_batch=4096, rule="sde").recipe
    o = planned.optimizer
    assert o.name == "adamw"
    assert o.lr == pytest.approx(8.485281e-4, rel=1e-6)
    assert o.betas == pytest.approx((0.2, 0.6), rel=1e-9)  # 1 - 8 x 0.1 and 1 - 8 x 0.05
    assert o.eps == pytest.approx(3.535534e-9, rel=1e-6)
    assert planned.num_updates == 1250
    assert planned.schedule.warmup.updates == 25  # 200 x 512 samples, as before
    assert o.weight_decay == pytest.approx(0.2828427, rel=2e-3)  # 0.1 sqrt(8); the sums over updates differ a little
    assert shrinkage(planned) == pytest.approx(shrinkage(PUBLISHED), rel=1e-4)


@given(beta=st.floats(0, 0.99999), k=st.floats(0.01, 100), times=st.floats(1, 10))
def test_moments_average_as_many_samples(beta, k, times):
    """An average with beta is over 1 / (1 - beta) updates, so k times fewer; never less than one, and two steps are one."""
    updates = 1 / (1 - beta_at(beta, k))
    assert updates == pytest.approx(max(1 / (1 - beta) / k, 1), rel=1e-6)
    if beta_at(beta, k) > 0:
        assert beta_at(beta_at(beta, k), times) == pytest.approx(beta_at(beta, k * times), abs=1e-6)


@given(k=st.floats(0.01, 100))
def test_rate_over_eps_follows_the_batch(k):
    """eta / eps ~ k: where eps is all that divides, Adam is SGD with momentum, whose rate is k times as high."""
    assert 3e-4 * k**0.5 / eps_at(1e-8, k) == pytest.approx(k * 3e-4 / 1e-8)


def test_the_optimizer_and_all_else_are_kept():
    fields = {change.field for change in plan(PUBLISHED, global_batch=1024, rule="sde").changes}
    settings = {f"optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay")}
    assert fields == {"batch.global_batch", "schedule.warmup.updates"} | settings
    for name in ("adam", "adamp"):
        o = plan(PUBLISHED.replace({"optimizer.name": name}), global_batch=1024, rule="sde").recipe.optimizer
        assert (o.name, o.betas) == (name, pytest.approx((0.8, 0.9)))
        assert o.weight_decay == pytest.approx(0.1 if name == "adam" else 0.1414, rel=2e-3)  # Adam's is a part of the loss


def test_a_smaller_batch_remembers_longer():
    o = plan(PUBLISHED, global_batch=128, rule="sde").recipe.optimizer
    assert o.lr == pytest.approx(1.5e-4)
    assert o.betas == pytest.approx((0.975, 0.9875))
    assert o.eps == pytest.approx(2e-8)
    assert o.weight_decay == pytest.approx(0.05, rel=2e-3)


def test_a_reference_of_another_kind_gets_adamw():
    sgd = Recipe.named("digits/mlp")
    by_sde, by_adamw = (plan(sgd, global_batch=128, rule=rule).recipe for rule in ("sde", "adamw"))
    assert by_sde == by_adamw
    assert by_sde.optimizer.name == "adamw"


def test_a_beta_of_zero_is_allowed_and_one_is_not():
    assert PUBLISHED.replace({"optimizer.betas": (0.0, 0.0)}).optimizer.betas == (0, 0)
    for wrong in (1.0, -0.1):
        with pytest.raises(RecipeError, match=r"optimizer\.betas"):
            PUBLISHED.replace({"optimizer.betas": (wrong, 0.95)})


@pytest.mark.parametrize(
    ("k", "said"),
    [
        (4, []),
        (5, ["beta1 goes from 0.9 to 0.5 (k (1 - beta1) = 0.5)"]),
        (8, ["beta1 goes from 0.9 to 0.2 (k (1 - beta1) = 0.8)"]),
        (16, ["beta1 goes from 0.9 to 0 (k (1 - beta1) = 1.6)", "beta2 goes from 0.95 to 0.2 (k (1 - beta2) = 0.8)"]),
    ],
)
def test_leaving_the_range_is_said_with_a_batch_inside_it(k, said):
    found = [w for w in plan(PUBLISHED, global_batch=512 * k, rule="sde").warnings if w.kind == "sde"]
    assert len(found) == bool(said)
    for warning in found:
        assert all(text in warning for text in said)
        assert warning.count("goes from") == len(said)
        assert warning.endswith("no longer describes this run; try --global-batch 2048 or --rule adamw")
        assert not plan(PUBLISHED, global_batch=512 * k, rule="sde", overrides={"optimizer.betas": (0.5, 0.5)}).warnings


@given(betas=st.tuples(st.floats(0, 0.99999), st.floats(0, 0.99999)))
def test_the_largest_batch_inside_is_the_last_one_inside(betas):
    k = largest_inside(betas)
    assert k == 0 or outside(betas, k) == []
    assert outside(betas, k + 1) != []
