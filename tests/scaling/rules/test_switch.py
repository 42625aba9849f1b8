"""Rules that change the optimizer."""

import math

import pytest
import torch
from tests.scaling.published import PUBLISHED, shrinkage

from bigbatch import Recipe, fit, plan
from bigbatch.scaling.rules.muon import muon_rates
from bigbatch.scaling.rules.weight_decay import total_shrinkage

CNN, LSTM, RESNET8 = (Recipe.named(f"fashion_mnist/{name}") for name in ("cnn", "lstm", "resnet8"))


def test_muon_by_hand():  # 55,000 x 8 / 8,192 = 53.7: 54 updates
    planned = plan(CNN, global_batch=8192, rule="muon").recipe
    assert planned.num_updates == 54
    o = planned.optimizer
    assert (o.lr, o.adam_lr) == pytest.approx((0.4 / math.sqrt(54), 0.15 / math.sqrt(54)))
    assert planned.schedule.warmup.epochs * 55000 == pytest.approx(2 * 8192)
    assert planned.schedule.warmup.start_factor == pytest.approx(1 / 3)


def test_muon_by_hand_from_adamw():
    """512 to 4,096 of AdamW at 3e-4 and decay 0.1: k = 8, whose root is 2.828427."""
    planned = plan(PUBLISHED, global_batch=4096, rule="muon").recipe
    o = planned.optimizer
    assert (o.name, o.momentum, o.betas, o.eps) == ("muon", 0.95, (0.9, 0.95), 1e-8)
    assert (o.lr, o.adam_lr) == pytest.approx((8.485281e-4, 8.485281e-4), rel=1e-6)
    assert planned.schedule.warmup.updates == 200  # as many updates, of 1,250
    assert planned.schedule.decay == PUBLISHED.schedule.decay
    assert shrinkage(planned) == pytest.approx(shrinkage(PUBLISHED), rel=1e-4)
    assert 0.28 < o.weight_decay < 0.32  # 0.1 sqrt(8) = 0.283, and more for the longer warm-up


def test_muon_from_adamw_warms_up_for_half_the_run_at_most_and_gives_its_reasons():
    planned = plan(PUBLISHED, global_batch=512 * 64, rule="muon")
    assert planned.recipe.warmup_epochs == pytest.approx(PUBLISHED.total_epochs / 2)
    reasons = {change.field: change.why for change in planned.changes}
    assert reasons["optimizer.lr"].startswith("of adamw, times sqrt(k) = 8: a step of the orthogonalised matrices")
    assert reasons["optimizer.adam_lr"] == "of adamw, times sqrt(k) = 8: of all else, by AdamW"
    assert "over the run the weights shrink by as much" in reasons["optimizer.weight_decay"]


def test_muon_rates_halve_with_four_times_the_updates():
    assert muon_rates(400) == pytest.approx([rate / 2 for rate in muon_rates(100)])


def test_muon_goes_to_zero_as_it_says():
    """The cosine's own last factor used to stay."""
    reference = CNN.replace({"schedule.decay.final_factor": 0.1})
    planned = plan(reference, global_batch=2048, rule="muon")
    assert planned.recipe.schedule.decay.final_factor == 0.0


def test_muon_names_the_updates_that_the_run_has():
    """A budget in updates used to be rounded for the run, and rounded up for the rates."""
    reference = CNN.replace({"budget.epochs": None, "budget.updates": 1000})
    planned = plan(reference, global_batch=128 * 16 + 1, rule="muon")
    (lr,) = [c for c in planned.changes if c.field == "optimizer.lr"]
    assert f"sqrt({planned.recipe.num_updates})" in lr.why
    assert planned.recipe.optimizer.lr == pytest.approx(0.4 / math.sqrt(planned.recipe.num_updates))


def test_soap_muon_takes_longer_steps_than_muon_from_sgd_and_as_long_ones_from_adam():
    """54 updates: 1.4 * 0.4 / sqrt(54) = 0.0762; all else, and the total shrinkage, as rule muon has it."""
    for reference, longer in ((CNN, 1.4), (PUBLISHED, 1.0)):
        batch = 64 * reference.batch.global_batch
        ours, muon = (plan(reference, global_batch=batch, rule=rule).recipe for rule in ("soap_muon", "muon"))
        own = {"optimizer.name": "soap_muon", "optimizer.lr": ours.optimizer.lr, "optimizer.weight_decay": ours.optimizer.weight_decay}
        assert ours == muon.replace(own)
        assert ours.optimizer.lr == pytest.approx(longer * muon.optimizer.lr)
        assert total_shrinkage(ours) == pytest.approx(total_shrinkage(muon), rel=1e-4)
    assert plan(CNN, global_batch=8192, rule="soap_muon").recipe.optimizer.lr == pytest.approx(0.0762, rel=1e-3)
    muons = plan(Recipe.named("text/gpt-muon"), global_batch=64, rule="soap_muon").recipe.optimizer
    assert (muons.name, muons.lr) == ("soap_muon", pytest.approx(2 * Recipe.named("text/gpt-muon").optimizer.lr))


def test_forget_gates_start_open_where_the_model_has_them():
    assert plan(LSTM, global_batch=8192, rule="muon").recipe.model == {"forget_bias": 1.0}
    assert "forget_bias" not in plan(CNN, global_batch=8192, rule="muon").recipe.model


@pytest.mark.parametrize(
    ("rule", "name", "lr"),
    [
        ("lars", "lars", 4 * math.sqrt(8192 / 512)),
        ("lamb", "lamb", 0.04 * math.sqrt(8192 / 32768)),
        ("adam", "adamw", 0.008),
        ("adamp", "adamp", 0.008),
    ],
)
def test_published_rates(rule, name, lr):
    planned = plan(RESNET8, global_batch=8192, rule=rule).recipe
    assert planned.optimizer.name == name
    assert planned.optimizer.lr == pytest.approx(lr)
    assert planned.schedule.warmup.epochs == 6  # LEGW's 6.4 does not fit half the run of 12
    assert planned.schedule.decay.kind == "cosine"


def test_a_recipe_of_the_rules_optimizer_is_started_from():
    """Tuned Muon at 257 instead of 256 used to lose its rate, decay, warm-up and schedule."""
    tuned = CNN.replace(
        {
            "optimizer.name": "muon",
            "optimizer.lr": 0.02,
            "optimizer.adam_lr": 0.004,
            "optimizer.weight_decay": 0.1,
            "batch.global_batch": 256,
        }
    )
    o = plan(tuned, global_batch=1024).recipe.optimizer
    assert (o.lr, o.adam_lr, o.momentum) == pytest.approx((0.04, 0.008, CNN.optimizer.momentum))
    assert o.weight_decay == pytest.approx(0.2, rel=0.01)  # twice the rate, a quarter of the updates
    adamw = CNN.replace({"optimizer.name": "adamw", "optimizer.lr": 0.003, "optimizer.betas": [0.8, 0.95], "optimizer.weight_decay": 0.1})
    assert plan(adamw, global_batch=512, rule="adam").recipe.optimizer.lr == pytest.approx(0.006)
    projected = plan(adamw, global_batch=512, rule="adamp").recipe.optimizer  # the same rates and betas
    assert (projected.name, projected.lr, projected.betas) == ("adamp", pytest.approx(0.006), (0.8, 0.95))
    lars = CNN.replace({"optimizer.name": "lars", "optimizer.lr": 2.0, "optimizer.trust_coefficient": 0.02, "optimizer.nesterov": True})
    o = plan(lars, global_batch=512, rule="lars").recipe.optimizer
    assert (o.lr, o.trust_coefficient, o.nesterov, o.adapt_norms_and_biases) == (4.0, 0.02, True, False)


@pytest.mark.parametrize("rule", ["lars", "lamb", "adam", "adamp", "muon"])
def test_a_planned_recipe_trains_and_survives_a_round_trip(rule, tmp_path):
    planned = plan(Recipe.named("digits/mlp"), global_batch=256, rule=rule).recipe.replace({"budget.epochs": 2})
    assert Recipe.from_toml(planned.to_toml()) == planned
    torch.manual_seed(0)
    whole = fit("digits/mlp", planned, quiet=True, out=tmp_path, tensorboard=False)
    assert math.isfinite(whole.test_score)
