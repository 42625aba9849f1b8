"""What TensorBoard shows of a run: by updates and by samples, with points and means that no clock decides."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigbatch import Interrupted, Recipe, fit
from bigbatch.core.clock import Clock
from bigbatch.train.state import scalars as module
from bigbatch.train.state.scalars import Scalars

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def events_in(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(folder, tag):
    return [(event.step, event.value) for event in events_in(folder).Scalars(tag)]


def losses(folder):
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return [(line["samples"], line["loss"], line["global_batch"]) for line in lines if line["kind"] == "update"]


def test_arms_of_unlike_batches_lie_on_each_other_by_samples(tmp_path):
    """Before, steps were updates only."""
    for batch in (32, 64):
        fit("digits/mlp", RECIPE.replace({"batch.global_batch": batch}), out=tmp_path / str(batch), quiet=True)
    for tag in ("train/loss", "validation/score", "test/score"):
        last = [points(tmp_path / batch / "tensorboard-by-samples", tag)[-1][0] for batch in ("32", "64")]
        assert last == [1297, 1297]
    assert points(tmp_path / "32" / "tensorboard", "train/loss")[-1][0] == 41


def test_the_training_loss_is_the_mean_since_the_point_before(tmp_path, monkeypatch):
    """Before, it was that of the last update at each look at the clock, which were one or two here."""
    monkeypatch.setattr(module, "POINTS", 10)
    fit("digits/mlp", RECIPE, out=tmp_path, quiet=True)
    told = points(tmp_path / "tensorboard", "train/loss")
    assert len(told) == 11  # one at once, then one each tenth of the run
    record, first = losses(tmp_path), 0
    for step, value in told:
        window = record[first:step]
        assert value == pytest.approx(sum(loss * n for _, loss, n in window) / sum(n for *_, n in window), rel=1e-5)
        first = step
    assert first == len(record)


@pytest.mark.parametrize("stop", [13, 17, 29])
def test_a_resumed_run_has_the_same_points(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(module, "POINTS", 7)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    fit("digits/mlp", RECIPE, out=straight, quiet=True, measure_noise=True)
    from bigbatch.train import loop

    original, calls = loop.update, []

    def stops(run):
        calls.append(1)
        if len(calls) == stop:
            raise Interrupted("stopped")
        original(run)

    with monkeypatch.context() as patch:
        patch.setattr("bigbatch.train.trainer.update", stops)
        with pytest.raises(Interrupted):
            fit("digits/mlp", RECIPE, out=broken, quiet=True, measure_noise=True, save_every_s=0.0)
    fit("digits/mlp", RECIPE, out=broken, quiet=True, measure_noise=True, resume=True)
    for folder in ("tensorboard", "tensorboard-by-samples"):
        for tag in ("train/loss", "train/lr", "train/noise_scale", "validation/score"):
            assert points(broken / folder, tag) == points(straight / folder, tag), (folder, tag)


def test_hyper_parameters_are_the_recipe_s(tmp_path):
    fit("digits/mlp", RECIPE, out=tmp_path, quiet=True)
    told = events_in(tmp_path / "tensorboard").PluginTagToContent("hparams")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    start = HParamsPluginData.FromString(told["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["optimizer.lr"].number_value == RECIPE.optimizer.lr
    assert start["batch.global_batch"].number_value == 32
    assert start["schedule.decay.kind"].string_value == RECIPE.schedule.decay.kind
    experiment = HParamsPluginData.FromString(told["_hparams_/experiment"]).experiment
    assert {info.name.tag for info in experiment.metric_infos} == {"validation/score", "test/score"}


def test_the_noise_scale_is_a_ratio_of_means(tmp_path):
    """By hand: signals 1, 3 and noises 30, 10 weigh .98 and 1, so (.98 x 30 + 10) / (.98 x 1 + 3) = 9.9; a mean of ratios is 16.7."""
    scalars = Scalars(tmp_path, Clock(), wanted=True)
    scalars.noise(Clock(10, 1), {"all": (1.0, 30.0), "layer": (5.0, 5.0)})
    scalars.noise(Clock(20, 2), {"all": (3.0, 10.0)})
    scalars.noise(Clock(30, 3), {"all": (math.nan, 1.0)})
    scalars.close()
    assert points(tmp_path / "tensorboard-by-samples", "train/noise_scale") == [
        (10, pytest.approx(30.0)),
        (20, pytest.approx(39.4 / 3.98)),
        (30, pytest.approx(39.4 / 3.98)),
    ]


def test_a_resumed_run_needs_no_recipe_in_its_record(tmp_path):
    """Only TensorBoard reads that copy; the run has its own."""
    from bigbatch.train.state.record import Record

    start = {"kind": "start", "task": "t", "environment": {}, "recipe": {"optimizer": {"name": "unknown here"}}}
    line = {"kind": "update", "update": 1, "samples": 32, "loss": 1.0, "lr": 0.1, "global_batch": 32}
    (tmp_path / "record.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(line)}\n")
    record = Record(tmp_path, Clock(32, 1), tensorboard=True).open()
    record.close()
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 2
