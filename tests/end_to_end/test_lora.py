"""Adapters of low rank on a frozen base (LoRA): groups, decay, noise, plans, and runs that are stopped and go on."""

import pytest
import torch
from torch import nn

import bigbatch
from bigbatch import Recipe
from bigbatch.core.checks import Interrupted
from bigbatch.core.tensors.groups import param_groups
from bigbatch.noise import NoiseScaleMonitor
from bigbatch.optim import describe_groups, muon_groups
from bigbatch.scaling.rules.weight_decay import total_shrinkage
from bigbatch.study.noise import measure_noise
from bigbatch.tasks import Metric
from bigbatch.tasks.data.text import split_text
from bigbatch.tasks.models import GPT
from bigbatch.tasks.text import Text
from bigbatch.train.state.record import read_record

CONTEXT, RANK = 16, 2
RECIPE = Recipe.from_toml("""
num_train_samples = 500
precision = "float64"
optimizer = { name = "adamw", lr = 1e-2, weight_decay = 0.1 }
schedule = { warmup = { kind = "gradual", updates = 3 }, decay = { kind = "cosine" } }
batch = { global_batch = 8, micro_batch = 2 }
budget = { updates = 12 }
""")


class LoRA(nn.Module):
    """W x + B A x alpha / r, with W frozen."""

    def __init__(self, base, rank=RANK, alpha=4):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


def with_adapters(model):
    model.requires_grad_(False)
    for block in model.blocks:
        block.attention.qkv, block.expand, block.contract = map(LoRA, (block.attention.qkv, block.expand, block.contract))
    return model


class Tuned(Text):
    """A small GPT on bytes, of which only adapters are trained."""

    name, metric = "tests/lora", Metric("loss", "nats per byte", "lower", margin=0.02)
    tokens_per_sample = CONTEXT

    def splits(self):
        random = torch.Generator().manual_seed(1)
        return split_text(torch.randint(97, 103, (9000,), generator=random).to(torch.uint8), context=CONTEXT)

    def model(self):
        return with_adapters(GPT(context=CONTEXT, width=16, num_blocks=2, num_heads=2, vocab_size=128, tied=False))


def adapters(model):
    return {name for name, _ in model.named_parameters() if name.endswith((".a", ".b"))}


def names(model, tensors):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[id(p)] for p in tensors}


def trained(**changes):
    return RECIPE.replace({"num_train_samples": len(Tuned().splits().train), **changes})


def test_adapters_alone_are_grouped_and_decay_as_weights():
    model = Tuned().model()
    (group,) = param_groups(model, weight_decay=0.1)
    assert (names(model, group["params"]), group["weight_decay"]) == (adapters(model), 0.1)
    shown = {row.name: row.group for row in describe_groups(model, kind="decay")}
    assert shown == {name: "weights" if name in adapters(model) else "frozen" for name in shown}


def test_muon_takes_nothing_that_is_frozen():
    model = Tuned().model()
    groups = muon_groups(model, lr=0.05, adam_lr=0.01)
    assert set.union(*(names(model, g["params"]) for g in groups)) == adapters(model)


def test_noise_is_of_the_adapters_and_frozen_weights_cost_nothing():
    model, task = Tuned().model().double(), Tuned()
    x, y = task.splits().train.tensors
    pieces, means = torch.arange(12).split(3), []
    for piece in pieces:
        loss = task.losses(model(x[piece]), y[piece]).mean()
        means.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]))
    monitor = NoiseScaleMonitor(model)
    assert {name for name, p in model.named_parameters() if p._backward_hooks} == adapters(model)
    for piece in pieces:
        (task.losses(model(x[piece]), y[piece]).sum() / 12).backward()
        monitor.micro_batch(3, divisor=12)
    monitor.update()
    noise = float(3 * torch.stack(means).var(0, correction=1).sum())  # by hand: three samples a mean
    assert monitor.flush()[0].noise == pytest.approx(noise, rel=1e-9)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_trains_adapters_and_a_resumed_one_ends_alike(tmp_path, name):
    extra = {} if name == "adamw" else {"optimizer": {"name": "muon", "lr": 0.01, "adam_lr": 0.003, "weight_decay": 0.1}}
    recipe = trained(**extra)
    how = {"quiet": True, "measure_test": False, "tensorboard": False, "measure_noise": True}
    bigbatch.fit(Tuned(), recipe, out=tmp_path / "whole", **how)
    told = [line["signal_and_noise"]["all"] for line in read_record(tmp_path / "whole" / "record.jsonl") if line["kind"] == "noise"]
    assert len(told) == 12
    assert all(noise > 0 for _, noise in told)
    weights = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["model"]
    torch.manual_seed(recipe.seed)
    start = Tuned().model().double().state_dict()
    changed = {key for key in start if not torch.equal(start[key], weights[key])}
    assert changed == adapters(Tuned().model())

    class Stops(Tuned):
        calls = 0

        def losses(self, outputs, targets):
            Stops.calls += 1
            if Stops.calls == 4 * 7 + 2:
                raise KeyboardInterrupt
            return super().losses(outputs, targets)

    with pytest.raises(Interrupted, match="saved up to update 7"):
        bigbatch.fit(Stops(), recipe, out=tmp_path / "resumed", save_every_s=0, **how)
    bigbatch.fit(Tuned(), recipe, out=tmp_path / "resumed", resume=True, **how)
    again = torch.load(tmp_path / "resumed" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_a_plan_keeps_the_total_decay_and_the_study_counts_tokens(tmp_path):
    recipe = trained(budget={"epochs": 3})
    planned = bigbatch.plan(recipe, global_batch=32, rule="adamw").recipe
    assert planned.optimizer.lr == pytest.approx(2 * recipe.optimizer.lr)
    assert total_shrinkage(planned) == pytest.approx(total_shrinkage(recipe), rel=1e-3)
    bigbatch.fit(Tuned(), planned, quiet=True, measure_test=False)
    assert measure_noise(Tuned(), trained(), out=tmp_path, quiet=True).tokens_per_sample == CONTEXT
