import itertools

import pytest
import torch

from bigbatch.core.hardware import arithmetic as module
from bigbatch.core.hardware.arithmetic import SETTINGS, arithmetic, differences, repeats


def test_settings_are_told_where_they_are_set(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    plain = arithmetic()
    assert set(plain) == {"torch", "numpy", "num_threads", "cpu_capability", "denormals", "processor", "gpu"}
    monkeypatch.setenv("MKL_CBWR", "AVX2,STRICT")
    assert arithmetic() == {**plain, "MKL_CBWR": "AVX2,STRICT"}
    assert differences(arithmetic(), plain) == ["MKL_CBWR: AVX2,STRICT here, not set there"]
    assert differences(plain, plain) == []


def test_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    assert module._processor()  # where there is no such file
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n")
    assert arithmetic()["processor"] == "A Processor @ 2 GHz"


@pytest.mark.bit_for_bit
def test_a_gradient_repeats():
    assert repeats()


def test_a_gradient_that_does_not_repeat_is_noticed(monkeypatch):
    calls, tanh = itertools.count(), torch.Tensor.tanh

    def rounded_otherwise_once(self):
        return tanh(self) * (1 + 2**-20 * (next(calls) == 7))

    monkeypatch.setattr(torch.Tensor, "tanh", rounded_otherwise_once)
    assert not repeats()
