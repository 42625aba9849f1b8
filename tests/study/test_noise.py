import json
import math

import pytest

from bigbatch import Recipe
from bigbatch.core.checks import UserError
from bigbatch.noise.estimate import NoiseEstimate, estimate
from bigbatch.report.noise import draw_noise
from bigbatch.study.noise import NoiseStudy, Stretch, measure_noise
from bigbatch.train.state.record import read_record

DIGITS = Recipe.named("digits/mlp").replace({"budget.epochs": 5, "batch.micro_batch": 32})


def of(value, lower, upper, updates=100):
    return NoiseEstimate(value, lower, upper, 1.0, value, updates)


def study_of(*estimates, **changes):
    stretches = tuple(Stretch(100 * i, 100 * (i + 1), {"all": e}) for i, e in enumerate(estimates))
    return NoiseStudy("digits/mlp", DIGITS.replace(changes), stretches, estimates[0])


def test_stretches_are_what_the_record_says(tmp_path):
    study = measure_noise("digits/mlp", DIGITS, out=tmp_path, quiet=True, layers=True)
    lines = [line for line in read_record(tmp_path / "record.jsonl") if line["kind"] == "noise"]
    assert [s.first for s in study.stretches] == [0, *[s.last for s in study.stretches[:-1]]]
    assert study.stretches[-1].last == len(lines) == DIGITS.num_updates
    first = study.stretches[0]
    signals, noises = zip(*[line["signal_and_noise"]["all"] for line in lines[: first.last]], strict=True)
    assert first.whole == estimate(signals, noises)
    assert list(first.estimates) == ["all", "1", "3"]
    weights = [s.last - s.first for s in study.stretches]
    lower = sum(w * s.whole.lower for w, s in zip(weights, study.stretches, strict=True)) / sum(weights)
    assert study.average.lower == pytest.approx(lower)
    stored = json.loads((tmp_path / "noise.json").read_text())
    assert stored["average"]["lower"] == pytest.approx(lower)
    known = all(math.isfinite(s.whole.upper) for s in study.stretches)
    assert (stored["average"]["noise_scale"] is not None) == known, "a bound is not a value"
    again = measure_noise("digits/mlp", DIGITS, out=tmp_path, quiet=True, at=[0, 100])
    assert [(s.first, s.last) for s in again.stretches] == [(0, 50), (75, 125)]
    svg = draw_noise(stored)
    assert svg.startswith("<svg")
    assert "digits/mlp: gradient noise scale" in svg


def test_words_for_what_it_says_and_what_it_does_not_know():
    study = study_of(of(912.0, 702.0, 1204.0), of(4013.0, 3000.0, 6000.0))
    assert study.sentence().startswith("batches up to about 910 [700, 1,200] samples early (updates 0 to 100), up to about 4,000")
    assert len(study.doubts()) == 2
    many = study_of(of(912.0, 702.0, math.inf), **{"optimizer.name": "adamw", "batch.ghost_batch": 16})
    assert many.sentence().startswith("batches up to at least 700 samples early")
    silent = study_of(NoiseEstimate(math.nan, 0.0, math.inf, -1.0, 912.3, 9))
    assert silent.sentence().startswith("batches of unknown size (no signal yet: any batch is possible) early")
    for part in ("adamw weighs gradients", "groups of 16", "only a lower bound", "rate over batch", "not of accuracy"):
        assert part in " ".join(many.doubts())


def test_updates_outside_the_run(tmp_path):
    with pytest.raises(UserError, match="update 999: the run has updates 0 to 203; choose among them"):
        measure_noise("digits/mlp", DIGITS, out=tmp_path, quiet=True, at=[999])
    assert not list(tmp_path.iterdir()), "said before anything is trained"
    measure_noise("digits/mlp", DIGITS, out=tmp_path, quiet=True)
    with pytest.raises(UserError, match="did not record each layer's noise from its start on: give another --out"):
        measure_noise("digits/mlp", DIGITS, out=tmp_path, quiet=True, layers=True)


def test_a_recipe_whose_update_is_one_normalisation_group(tmp_path):
    with pytest.raises(UserError, match="one normalisation group"):
        measure_noise("fashion_mnist/resnet8", out=tmp_path, quiet=True)


GPT = Recipe.named("text/gpt").replace(
    {"model": {"width": 16, "num_blocks": 1, "num_heads": 2}, "budget": {"updates": 30}, "batch.global_batch": 8}
)


def test_a_language_model_in_tokens(tmp_path):
    """Samples are sequences of 128: every noise scale is told in both units."""
    study = measure_noise("text/gpt", GPT, out=tmp_path, quiet=True, layers=True)
    assert study.tokens_per_sample == 128
    assert {"blocks.0.norm1", "blocks.0.attention.qkv", "norm", "head", "embed"} < set(study.stretches[0].estimates)
    stored = json.loads((tmp_path / "noise.json").read_text())
    whole = stored["stretches"][0]["parts"]["all"]
    assert (stored["of"], stored["tokens_per_sample"]) == ("all", 128)
    assert whole["noise_scale_tokens"] == pytest.approx(128 * whole["noise_scale"])
    assert whole["words_tokens"] == study.in_tokens(study.stretches[0].whole)
    assert "tokens (log)" in draw_noise(stored)
    assert " tokens" in study.sentence()
    with pytest.raises(UserError, match="did not record the norm layers' noise"):
        measure_noise("text/gpt", GPT, out=tmp_path, quiet=True, norms=True)


def test_words_in_tokens():
    tokens = NoiseStudy("text/gpt", GPT, study_of(of(912.0, 702.0, 1204.0)).stretches, of(912.0, 702.0, math.inf), 128)
    assert "up to about 910 [700, 1,200] samples = 120,000 [90,000, 150,000] tokens early" in tokens.sentence()
    assert "up to at least 700 samples = 90,000 tokens on the mean" in tokens.sentence()
    assert of(912.0, 702.0, 1204.0).in_tokens(128)[:3] == (912 * 128, 702 * 128, 1204 * 128)
    assert "tokens" not in study_of(of(912.0, 702.0, 1204.0)).sentence()


def test_norm_layers_alone(tmp_path):
    study = measure_noise("text/gpt", GPT, out=tmp_path / "norms", quiet=True, norms=True)
    whole = measure_noise("text/gpt", GPT, out=tmp_path / "layers", quiet=True, layers=True)
    assert list(study.stretches[0].estimates) == ["norms"]
    norms = [e for name, e in whole.stretches[0].estimates.items() if "norm" in name]
    assert study.stretches[0].whole.noise == pytest.approx(sum(e.noise for e in norms), rel=1e-4)
    assert study.stretches[0].whole.signal == pytest.approx(sum(e.signal for e in norms), rel=1e-3)
    assert study.sentence().startswith("by the norm layers alone, batches")
    assert "norm layers alone" in " ".join(study.doubts())
    stored = json.loads((tmp_path / "norms" / "noise.json").read_text())
    assert "norm layers alone" in draw_noise(stored)
    with pytest.raises(UserError, match="did not record noise from its start on"):
        measure_noise("text/gpt", GPT, out=tmp_path / "norms", quiet=True)
    with pytest.raises(UserError, match="layers and norms"):
        measure_noise("text/gpt", GPT, out=tmp_path / "both", quiet=True, layers=True, norms=True)
    by_rule = GPT.replace({"batch.rule": {"kind": "norm_test"}})
    with pytest.raises(UserError, match="norm layers alone, and the rule norm_test, which needs the whole's"):
        measure_noise("text/gpt", by_rule, out=tmp_path / "rule", quiet=True, norms=True)
