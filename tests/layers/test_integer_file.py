import numpy as np
import pytest
import torch
from torch import nn

from bigbatch.core.checks import OutputError, UserError
from bigbatch.layers import float_twin, quantize_batch_norm, save_integers


def network(*middle):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(), *middle, nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(*layers)
    inputs = torch.randint(0, 256, (64, 1, 8, 8)).float()
    model(inputs)
    return quantize_batch_norm(float_twin(model.eval(), inputs))


def test_the_file_holds_the_network_in_small_integers(tmp_path):
    """What numpy makes of it is in examples/integer_only_network.py, which compares every logit."""
    net = network(nn.MaxPool2d(2))
    save_integers(net, tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as file:
        arrays = dict(file.items())
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in arrays)) == [
        "input.IntegerInput",
        "0.Conv2d",
        "1.QuantizedBatchNorm",
        "3.MaxPool2d",
        "4.Flatten",
        "5.Linear",
    ]
    assert all(values.dtype.kind == "i" for values in arrays.values())
    assert arrays["0.Conv2d.weight"].dtype == arrays["5.Linear.weight"].dtype == np.int8
    assert arrays["0.Conv2d.stride"].tolist() == [2, 2]
    assert arrays["3.MaxPool2d.kernel_size"] == 2
    assert arrays["1.QuantizedBatchNorm.top"] == 255
    for name in "ABK":
        assert np.array_equal(arrays[f"1.QuantizedBatchNorm.{name}"], net[2].state_dict()[name])
    assert np.array_equal(arrays["5.Linear.bias"], net[-1].bias)


def test_what_the_file_has_no_word_for(tmp_path):
    with pytest.raises(UserError, match="layer 3: ceil_mode = True: the file has no word for it; use False"):
        save_integers(network(nn.MaxPool2d(2, ceil_mode=True)), tmp_path / "net.npz")
    with pytest.raises(OutputError, match="can't write"):
        save_integers(network(), tmp_path / "nowhere" / "net.npz")
