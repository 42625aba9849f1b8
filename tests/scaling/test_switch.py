"""Rules that change the optimizer."""

import math

import pytest
import torch

from bigbatch import Recipe, fit, plan
from bigbatch.scaling.muon import kept_decay, muon_rates

CNN, LSTM, RESNET8 = (Recipe.named(f"fashion_mnist/{name}") for name in ("cnn", "lstm", "resnet8"))


def test_muon_by_hand():  # 55,000 x 8 / 8,192 = 53.7: 54 updates
    planned = plan(CNN, global_batch=8192, rule="muon").recipe
    assert planned.num_updates == 54
    o = planned.optimizer
    assert (o.lr, o.adam_lr) == pytest.approx((0.4 / math.sqrt(54), 0.15 / math.sqrt(54)))
    assert o.weight_decay == pytest.approx(0.1 * 5e-4 * 3438 / 0.1 / (o.lr * 54), rel=1e-4)
    assert planned.schedule.warmup.epochs * 55000 == pytest.approx(2 * 8192)
    assert planned.schedule.warmup.start_factor == pytest.approx(1 / 3)


def test_muon_keeps_the_shrinkage_whatever_the_batch():
    for k in (4, 16, 64):
        o = plan(CNN, global_batch=128 * k, rule="muon").recipe
        assert o.optimizer.lr * o.optimizer.weight_decay * o.num_updates == pytest.approx(0.1 * 5e-4 * 3438 / 0.1, rel=1e-4)
    adam = CNN.replace({"optimizer.name": "adamw", "optimizer.lr": 0.001, "optimizer.weight_decay": 0.1})
    assert kept_decay(adam, lr=0.1, num_updates=100) == pytest.approx(0.001 * 0.1 * 3438 / 10, rel=1e-4)


def test_muon_rates_halve_with_four_times_the_updates():
    assert muon_rates(400) == pytest.approx([rate / 2 for rate in muon_rates(100)])


def test_forget_gates_start_open_where_the_model_has_them():
    assert plan(LSTM, global_batch=8192, rule="muon").recipe.model == {"forget_bias": 1.0}
    assert "forget_bias" not in plan(CNN, global_batch=8192, rule="muon").recipe.model


@pytest.mark.parametrize(
    ("rule", "lr"), [("lars", 4 * math.sqrt(8192 / 512)), ("lamb", 0.04 * math.sqrt(8192 / 32768)), ("adam", 0.008), ("adamp", 0.008)]
)
def test_published_rates(rule, lr):
    planned = plan(RESNET8, global_batch=8192, rule=rule).recipe
    assert planned.optimizer.name == rule
    assert planned.optimizer.lr == pytest.approx(lr)
    assert planned.schedule.warmup.epochs == 6  # LEGW's 6.4 does not fit half the run of 12
    assert planned.schedule.decay.kind == "cosine"


@pytest.mark.parametrize("rule", ["lars", "lamb", "adam", "adamp", "muon"])
def test_a_planned_recipe_trains_and_survives_a_round_trip(rule, tmp_path):
    planned = plan(Recipe.named("digits/mlp"), global_batch=256, rule=rule).recipe.replace({"budget.epochs": 2})
    assert Recipe.from_toml(planned.to_toml()) == planned
    torch.manual_seed(0)
    whole = fit("digits/mlp", planned, quiet=True, out=tmp_path, tensorboard=False)
    assert math.isfinite(whole.test_score)
