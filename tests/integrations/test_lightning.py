import csv
import json
import re
import sys
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
import torch
from tests.distributed.ranks import run_ranks
from tests.integrations.lightning_models import CLIP, QUIET, Module, Resumable, data_of, in_order, own_loop, rates_of, recipe_of, trained

import bigbatch
from bigbatch.batching import AdaBatch, BatchSteps, LateSwitch, NoiseScaleRule, Ramp
from bigbatch.core.checks import UserError
from bigbatch.integrations.lightning import BigBatch, configure

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")


def agree(estimate, other):
    assert (estimate.signal, estimate.noise, estimate.noise_scale) == pytest.approx(
        (other.signal, other.noise, other.noise_scale), rel=1e-9
    )
    assert (estimate.lower, estimate.upper) == pytest.approx((other.lower, other.upper), rel=1e-9)
    assert estimate.num_updates == other.num_updates


@pytest.mark.parametrize(("kind", "ghost_batch"), [("gpt", None), ("resnet", 4)])
def test_noise_rates_and_weights_are_those_of_our_own_loop(kind, ghost_batch):
    recipe = recipe_of(32)
    callback = BigBatch(noise="layers", ghost_batch=ghost_batch)
    module = trained(Module(kind, recipe), callback, accumulate_grad_batches=4, max_epochs=4)
    monitor, rates, weights = own_loop(kind, recipe, in_order(4, 8, 4), ghost_batch=ghost_batch)
    agree(callback.monitor.estimate(), monitor.estimate())
    layer = "norm" if kind == "gpt" else "8"
    agree(callback.monitor.estimate(f"model.{layer}"), monitor.estimate(layer))
    assert module.rates == pytest.approx(rates, rel=1e-12)
    assert module.rates == pytest.approx(rates_of(recipe, 12), rel=1e-12)
    assert torch.allclose(module.weights, weights, rtol=1e-12, atol=0)


def test_a_plan_is_applied_whatever_an_update_is_cut_into():
    recipe = bigbatch.plan(recipe_of(8), global_batch=32, rule="linear").recipe
    cuts = [(32, 1), (16, 2), (4, 8)]
    for micro_batch, passes in cuts:
        module = Module("gpt", recipe)
        trained(module, BigBatch(noise=False), micro_batch=micro_batch, accumulate_grad_batches=passes, max_epochs=4)
        assert module.rates == pytest.approx(rates_of(recipe, 12), rel=1e-12)


def test_resumed_in_the_middle_of_an_epoch_all_is_the_same(tmp_path):
    recipe, settings = recipe_of(32), {"accumulate_grad_batches": 4, "max_epochs": 4}
    whole = BigBatch(every_updates=3)
    module = trained(Module("resnet", recipe), whole, **settings)
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=5, save_top_k=-1)
    first = trained(
        Module("resnet", recipe), BigBatch(every_updates=3), **settings | {"max_steps": 5, "enable_checkpointing": True}, callbacks=[save]
    )
    rest = BigBatch(every_updates=3)
    again = trained(Module("resnet", recipe), rest, **settings, ckpt_path=tmp_path / "at.ckpt")
    assert first.rates + again.rates == module.rates == pytest.approx(rates_of(recipe, 12), rel=1e-12)
    assert rest.clock == whole.clock == (4 * 96, 12)
    assert rest.monitor.estimate() == whole.monitor.estimate()
    assert torch.equal(again.weights, module.weights)


@pytest.mark.parametrize("kind", ["gpt", "resnet"])
def test_two_processes_measure_and_train_as_one(kind, tmp_path):
    said = run_ranks(HERE / "lightning_ranks.py", 2, tmp_path, kind, tmp_path)
    got = json.loads(said[0].splitlines()[-1])
    recipe = recipe_of(32)
    own = [list(range(rank, 96, 2)) for rank in range(2)]
    updates = [[own[r][8 * p : 8 * p + 8] for r in range(2) for p in (2 * u, 2 * u + 1)] for u in range(3)] * 4
    monitor, rates, weights = own_loop(kind, recipe, updates)
    told = monitor.estimate()
    for name in ("whole", "resumed"):
        assert got[name]["noise"] == pytest.approx([told.signal, told.noise, told.noise_scale, told.lower, told.upper], rel=1e-9)
        assert got[name]["rates"] == pytest.approx(rates_of(recipe, 12), rel=1e-12)
        assert got[name]["rates"] == pytest.approx(rates, rel=1e-12)
        assert got[name]["weights"] == pytest.approx([weights.sum().item(), weights.square().sum().item()], rel=1e-9)
    uneven = [json.loads(of_rank.splitlines()[-1])["uneven"] for of_rank in said]  # 48 and 47 samples: one clock, one rate
    assert uneven[0] == uneven[1]
    assert uneven[0]["clock"] == [4 * 95, 12]


@pytest.mark.parametrize(
    "grow",
    [
        AdaBatch(global_batch=16, num_train_samples=96, largest=64, every_epochs=0.7),
        BatchSteps(global_batch=16, steps=[(70, 32), (150, 64)]),
        LateSwitch(global_batch=16, largest=32, after=0.4, total_samples=192),
        Ramp(global_batch=16, largest=32, over_samples=140, multiple_of=16),
    ],
    ids=lambda grow: type(grow).__name__,
)
def test_a_batch_known_beforehand_sets_the_passes_where_an_epoch_allows(grow):
    """2 passes until 67 samples are seen, so 80; then 4, which begin at 96, the epoch's end; 8 are wanted at 160, where only 4 are left."""
    recipe = recipe_of(16)
    callback = BigBatch(batch_rule=lambda clock: grow.at(clock).global_batch, largest=64)
    module = trained(Module("resnet", recipe), callback, accumulate_grad_batches=2, max_epochs=2)
    groups = [range(first, first + 8) for first in range(0, 96, 8)]
    updates = [groups[i : i + 2] for i in range(0, 12, 2)] + [groups[i : i + 4] for i in range(0, 12, 4)]
    monitor, rates, weights = own_loop("resnet", recipe, updates)
    assert callback.clock == (192, 9)
    agree(callback.monitor.estimate(last=8), monitor.estimate(last=8))
    assert module.rates == pytest.approx(rates, rel=1e-12)
    assert torch.allclose(module.weights, weights, rtol=1e-9, atol=0)


def test_a_rule_that_observes_is_told_noise_loss_and_rate_and_is_followed(tmp_path):
    seen = []

    class Told(NoiseScaleRule):
        def observe(self, update):
            seen.append(update)
            super().observe(update)

    recipe = recipe_of(16)
    callback = BigBatch(batch_rule=Told(exchange_rate=1e6), largest=48, every_updates=1)
    module = trained(Module("gpt", recipe), callback, accumulate_grad_batches=2, max_epochs=6)
    assert [update.lr for update in seen] == module.rates
    assert {update.global_batch for update in seen[:20]} == {16}
    assert seen[0].loss == pytest.approx(3.47, abs=0.1)  # log 32
    assert seen[-1].global_batch in (32, 48)
    monitor, *_ = own_loop("gpt", recipe, in_order(1, 8, 2))
    told = monitor.estimate(last=6)
    assert sum(update.noise for update in seen[:6]) / 6 == pytest.approx(told.noise, rel=1e-9)


def test_a_rule_goes_on_from_a_checkpoint(tmp_path):
    recipe, settings = recipe_of(16), {"accumulate_grad_batches": 2, "max_epochs": 8}
    make = lambda: BigBatch(batch_rule=NoiseScaleRule(exchange_rate=1e6), largest=48, every_updates=2)  # noqa: E731
    whole, rest = make(), make()
    module = trained(Module("gpt", recipe), whole, **settings)
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=23, save_top_k=-1)
    first = trained(Module("gpt", recipe), make(), **settings | {"max_steps": 23, "enable_checkpointing": True}, callbacks=[save])
    again = trained(Module("gpt", recipe), rest, **settings, ckpt_path=tmp_path / "at.ckpt")
    assert first.rates + again.rates == module.rates
    assert len(module.rates) < 48  # it grew
    assert torch.equal(again.weights, module.weights)
    assert rest.monitor.estimate() == whole.monitor.estimate()


def test_what_is_measured_is_logged(tmp_path):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path, name="", version="")
    callback = BigBatch(noise="layers", every_updates=4)
    trained(Module("gpt", recipe_of(32)), callback, accumulate_grad_batches=4, max_epochs=4, logger=logger)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert [float(row["samples"]) for row in rows] == [128, 256, 384]
    told = callback.monitor.estimate()
    last = [float(rows[-1][name]) for name in ("noise_scale", "noise_scale_lower", "noise_scale_upper")]
    assert last == pytest.approx([told.noise_scale, told.lower, told.upper], nan_ok=True)
    assert "noise_scale/model.embed" in rows[-1]


def test_a_gradient_scaler_is_allowed_for():
    def scale(plugins):
        callback = BigBatch()
        recipe = recipe_of(32, **{"optimizer.lr": 1e-6})
        settings = {"precision": None, "accumulate_grad_batches": 4, "max_epochs": 4, "plugins": plugins}
        trained(Module("gpt", recipe, torch.float32), callback, **settings)
        return callback.monitor.estimate()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    half = scale([lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    single = scale([])
    assert half.num_updates == single.num_updates == 12
    assert (half.signal, half.noise) == pytest.approx((single.signal, single.noise), rel=0.05)


def fit(module, callback, **settings):
    trainer = lightning.Trainer(**{**QUIET, "max_epochs": 1, "gradient_clip_val": CLIP, **settings}, callbacks=[callback])
    trainer.fit(module, Resumable(data_of(module.kind), batch_size=8))


def without_clipping(module):
    module.recipe = module.recipe.replace({"optimizer.clip_norm": None})
    return module


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=re.escape("give Trainer(gradient_clip_val=0.05)")):
        fit(Module("gpt", recipe_of(8)), BigBatch(), gradient_clip_val=None)
    by_hand = without_clipping(Module("gpt", recipe_of(8)))
    by_hand.automatic_optimization = False
    with pytest.raises(UserError, match="automatic_optimization = False"):
        fit(by_hand, BigBatch(), gradient_clip_val=None)
    with pytest.raises(UserError, match="needs largest"):
        BigBatch(batch_rule=lambda clock: 64)
    for rule in (3, Ramp(global_batch=8, largest=64, over_samples=64)):
        with pytest.raises(UserError, match="must observe updates"):
            BigBatch(batch_rule=rule, largest=64)
    ramp = {"kind": "ramp", "largest": 64, "over_samples": 64}
    with pytest.raises(UserError, match='batch.rule.kind = "ramp": sets the batch, and the rate with it, which a scheduler can\'t do'):
        fit(Module("gpt", recipe_of(8, **{"batch.rule": ramp})), BigBatch())
    with pytest.raises(UserError, match="noise = False"):
        BigBatch(noise=False, batch_rule=NoiseScaleRule(exchange_rate=1.0), largest=64)
    with pytest.raises(UserError, match="batches from 8 to 4"):
        fit(Module("gpt", recipe_of(8)), BigBatch(batch_rule=lambda clock: 64, largest=4))


def test_a_batch_that_the_recipe_is_not_for_is_warned_of():
    with pytest.warns(UserWarning, match=re.escape("an update has 16 samples (2 x 8 on 1 processes), and the recipe is for 32")):
        fit(Module("gpt", recipe_of(32)), BigBatch(), accumulate_grad_batches=2)


def test_five_lines_are_enough():
    lines = (HERE.parents[1] / "examples" / "lightning_trainer.py").read_text().splitlines()
    assert len(lines) <= 40
    marked = [line for line in lines if line.endswith("# bigbatch")]
    assert len(marked) <= 5
    ours = re.compile(r"\b(BigBatch|configure|plan)\(")
    assert not [line for line in lines if ours.search(line) and line not in marked]


def test_without_lightning_one_line_says_so(monkeypatch):
    from bigbatch.core.extras import MissingExtra

    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"] + ["lightning"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "bigbatch.integrations.lightning")
    line = "the Lightning callback needs lightning, which is not installed: pip install 'bigbatch[lightning]'"
    with pytest.raises(MissingExtra, match=re.escape(line)):
        import bigbatch.integrations.lightning  # noqa: F401


def test_configure_is_what_lightning_takes():
    module = without_clipping(Module("gpt", recipe_of(32)))
    module.trainer = lightning.Trainer(**QUIET)
    made = configure(module, module.recipe)
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["lr_scheduler"]["scheduler"].optimizer is made["optimizer"]
