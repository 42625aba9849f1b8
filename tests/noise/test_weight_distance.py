import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bigbatch import Recipe, UserError, fit
from bigbatch.noise.weight_distance import WeightDistance, distance, fit_log, is_due
from bigbatch.train.state.record import read_record


def test_hand_worked():  # differences 3 and 4; and a line through (1, 2), (e, 5), (e^2, 8)
    assert distance([torch.tensor([4.0]), torch.tensor([[5.0]])], [torch.tensor([1.0]), torch.tensor([[1.0]])]) == 5.0
    fitted = fit_log([1, math.e, math.e**2], [2.0, 5.0, 8.0])
    assert tuple(fitted) == pytest.approx((3, 2, 1))


def test_half_precision_is_summed_in_float32():
    assert distance([torch.ones(100_000).bfloat16()], [torch.zeros(100_000).bfloat16()]) == pytest.approx(math.sqrt(100_000))


def test_the_start_is_a_copy():
    model = nn.Linear(2, 2)
    walked = WeightDistance(model)
    assert walked.now() == 0
    with torch.no_grad():
        model.weight += 1
    assert walked.now() == pytest.approx(2)


@given(slope=st.floats(0.1, 10), intercept=st.floats(-10, 10), noise=st.floats(0, 0.5), seed=st.integers(0, 100))
def test_the_fit_is_numpys_and_r_squared_the_squared_correlation(slope, intercept, noise, seed):
    t = np.arange(1, 200)
    d = intercept + slope * np.log(t) + noise * np.random.default_rng(seed).standard_normal(len(t))
    fitted = fit_log(t, d)
    assert fitted[:2] == pytest.approx(np.polyfit(np.log(t), d, 1))
    assert fitted.r_squared == pytest.approx(np.corrcoef(np.log(t), d)[0, 1] ** 2)


@given(per_octave=st.integers(1, 16))
def test_due_updates_are_even_on_a_logarithmic_axis(per_octave):
    due = [t for t in range(5000) if is_due(t, per_octave)]
    assert due[0] == 1
    late = [t for t in due if t >= 1024]
    assert sum(t < 2048 for t in late) == per_octave
    assert all(b / a < 2 ** (2 / per_octave) for a, b in itertools.pairwise(late))


@pytest.mark.parametrize("pairs", [([1, 2], [1.0, 2.0]), ([5, 5, 5], [1.0, 2.0, 3.0]), ([1, 2, 3], [1.0, 2.0]), ([], [])])
def test_too_little_to_fit(pairs):
    with pytest.raises(UserError, match="must be three pairs or more, of which some differ in the first; measure more"):
        fit_log(*pairs)


def test_before_the_first_update_there_is_no_logarithm():
    with pytest.raises(UserError, match="updates = 0: must be 1 or more, where the logarithm begins"):
        fit_log([0, 1, 2], [0.0, 1.0, 2.0])


def test_a_run_records_it_and_a_resumed_one_alike(tmp_path, monkeypatch):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 40, "batch.micro_batch": 32})
    settings = {"quiet": True, "tensorboard": False, "measure_distance": True}
    fit("digits/mlp", recipe, out=tmp_path / "whole", **settings)
    told = [line for line in read_record(tmp_path / "whole" / "record.jsonl") if line["kind"] == "weight_distance"]
    assert [line["update"] for line in told] == [t for t in range(1, 41) if is_due(t)]
    assert told[0]["distance"] == 0  # the warm-up's first rate
    assert all(a["distance"] < b["distance"] for a, b in itertools.pairwise(told))

    from bigbatch.train.state.record import Record

    class Stopped(Exception):
        pass

    def stops(record, clock, *rest, **more):
        update(record, clock, *rest, **more)
        if clock.updates == 21:
            raise Stopped

    update = Record.update
    monkeypatch.setattr(Record, "update", stops)
    with pytest.raises(Stopped):
        fit("digits/mlp", recipe, out=tmp_path / "part", save_every_s=0, **settings)
    monkeypatch.undo()
    fit("digits/mlp", recipe, out=tmp_path / "part", resume=True, **settings)
    again = [line for line in read_record(tmp_path / "part" / "record.jsonl") if line["kind"] == "weight_distance"]
    assert again == told


def test_unasked_nothing_is_recorded(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 2, "batch.micro_batch": 32})
    fit("digits/mlp", recipe, out=tmp_path / "run", quiet=True, tensorboard=False)
    assert all(line["kind"] != "weight_distance" for line in read_record(tmp_path / "run" / "record.jsonl"))
