from torch import nn

from bigbatch.core.tensors.groups import is_norm_or_bias
from bigbatch.optim import param_groups
from bigbatch.tasks.models import RowLSTM, resnet8


def test_two_masks_for_a_residual_network():
    model = resnet8(4)
    weights, rest = param_groups(model, weight_decay=5e-4)
    assert (weights["weight_decay"], weights["adapt"]) == (5e-4, True)
    assert (rest["weight_decay"], rest["adapt"]) == (0.0, False)
    assert all(p.ndim >= 2 for p in weights["params"])
    assert len(weights["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_the_two_switches_are_separate():
    _, rest = param_groups(nn.Linear(2, 2), weight_decay=0.1, decay_norms_and_biases=True, adapt_norms_and_biases=False)
    assert (rest["weight_decay"], rest["adapt"]) == (0.1, False)
    _, rest = param_groups(nn.Linear(2, 2), weight_decay=0.1, decay_norms_and_biases=False, adapt_norms_and_biases=True)
    assert (rest["weight_decay"], rest["adapt"]) == (0.0, True)


def test_a_norm_with_a_two_dimensional_gain_is_still_a_norm():
    assert is_norm_or_bias(nn.LayerNorm([3, 3])) == {"weight": True, "bias": True}


def test_recurrent_biases_are_biases():
    flags = is_norm_or_bias(RowLSTM())
    assert [name for name, flag in flags.items() if not flag] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [group["params"] for group in param_groups(model, weight_decay=0.1)] == [[model.weight]]
