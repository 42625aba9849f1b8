import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from bigbatch import Recipe, fit
from bigbatch.tasks.task import load_task
from bigbatch.train.setup import build
from bigbatch.train.setup.lstm_precision import Float32LSTM, cpu_computes_bfloat16, keep_lstms_in_float32

LSTM = Recipe.named("fashion_mnist/lstm")


def test_an_lstm_computes_in_float32_under_autocast():
    torch.manual_seed(0)
    model = nn.LSTM(8, 16, batch_first=True)
    inputs, state = torch.randn(4, 5, 8), (torch.randn(1, 4, 16), torch.randn(1, 4, 16))
    packed = pack_padded_sequence(inputs, torch.tensor([5, 4, 2, 1]), batch_first=True)
    plain = [model(inputs)[0], model(inputs, state)[0], model(packed)[0].data]
    assert keep_lstms_in_float32(nn.Sequential(model)) == 1
    with torch.autocast("cpu", torch.bfloat16):
        again = [model(inputs)[0], model(inputs.bfloat16().float(), hx=state)[0], model(packed)[0].data]
        assert copy.deepcopy(model)(inputs.bfloat16())[0].dtype == torch.float32
    torch.testing.assert_close(again[::2], plain[::2])
    assert keep_lstms_in_float32(nn.Sequential(model)) == 0
    assert set(model.state_dict()) == set(nn.LSTM(8, 16).state_dict())


@pytest.mark.parametrize("computes", [False, True])
def test_only_where_the_processor_needs_it(computes, monkeypatch):
    monkeypatch.setattr(build, "cpu_computes_bfloat16", lambda: computes)
    task = load_task("fashion_mnist/lstm")
    kinds = {
        precision: type(
            next(
                m
                for m in build.build_model(task, LSTM.replace({"precision": precision}), torch.device("cpu")).modules()
                if isinstance(m, nn.LSTM)
            )
        )
        for precision in ("float32", "bfloat16")
    }
    assert kinds == {"float32": nn.LSTM, "bfloat16": nn.LSTM if computes else Float32LSTM}


def test_the_shipped_lstm_trains_on_any_processor(tmp_path):
    """On one without bfloat16 instructions torch itself raises."""
    result = fit(
        "fashion_mnist/lstm",
        LSTM.replace({"budget.epochs": None, "budget.updates": 1, "batch.micro_batch": 128}),
        quiet=True,
        measure_test=False,
    )
    assert math.isfinite(result.validation_score)
    assert isinstance(cpu_computes_bfloat16(), bool)
