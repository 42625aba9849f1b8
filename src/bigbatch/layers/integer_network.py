"""Small networks in integers from first to last: a trained float network, its rounded float twin, the integer network, and a file of it.

    twin = float_twin(model, inputs)           # integer weights and activations, held as float64; batch norm in float64
    network = quantize_batch_norm(twin)        # the same with integers only: the same levels, bit for bit
    save_integers(network, "network.npz")      # for anything that can add, multiply and shift

The twin's products and sums are of integers below 2^53, and so exact in float64, in any order; only its batch norms round. As rounding
keeps the order, what they make of an integer never falls as it grows (or never rises), so that a comparison of twin and integers on both
sides of each level's boundary proves that they agree everywhere, as long as torch computes all elements alike. `quantize_batch_norm`
compares them there, for every channel.
"""

from collections import OrderedDict, deque
from copy import deepcopy

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError, check_positive
from bigbatch.layers.quantized_batch_norm import (
    BatchNorm,
    QuantizedBatchNorm,
    check_accumulator,
    check_bits,
    check_integers,
    critical_points,
    fold_batch_norm,
)

KNOWN = "Conv2d, Linear, batch norm, ReLU, Quantizer, MaxPool2d, Flatten, Dropout and Identity"


class Quantizer(nn.Module):
    """Real values to levels, clip(floor(x / step + 1/2), 0, 2^k - 1), as floats; gradients pass straight through where nothing is clipped.

    Args:
        step: Real value of one level.
        bits: k, 1 to 16.

    Raises:
        UserError: If a setting is out of range.

    >>> Quantizer(0.5, bits=2)(torch.tensor([-1.0, 0.2, 0.25, 0.9, 9.0])).tolist()
    [0.0, 0.0, 1.0, 2.0, 3.0]
    """

    step: Tensor

    def __init__(self, step: float, *, bits: int = 8) -> None:
        super().__init__()
        check_positive("step", step, "give the real value of one level")
        check_bits(bits)
        self.bits = bits
        self.register_buffer("step", torch.tensor(step, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        """Levels, of the input's shape and type."""
        levels = (input / self.step).clamp(0, 2**self.bits - 1)
        return (levels + 0.5).floor().detach() + (levels - levels.detach())

    def extra_repr(self) -> str:
        """Constructor arguments, for `print(model)`."""
        return f"step={float(self.step):g}, bits={self.bits}"


class IntegerInput(nn.Module):
    """The door of an integer network: integers lo..hi of any type pass, as the accumulator's type, and nothing else does.

    Raises:
        UserError: If the range is empty, or the accumulator not torch.int32 or torch.int64.
    """

    def __init__(self, lo: int, hi: int, accumulator: torch.dtype) -> None:
        super().__init__()
        check_accumulator(accumulator)
        if lo > hi:
            raise UserError(f"inputs from {lo} to {hi}: lo must not exceed hi; swap them")
        self.lo, self.hi, self.accumulator = lo, hi, accumulator

    def forward(self, input: Tensor) -> Tensor:
        """The same numbers.

        Raises:
            UserError: If the input is not of integers, or out of range.
        """
        check_integers(input)
        least, most = (int(end) for end in torch.aminmax(input))
        if least < self.lo or most > self.hi:
            raise UserError(f"input from {least} to {most}: must lie in {self.lo}..{self.hi}, for which the network was built")
        return input.to(self.accumulator)

    def extra_repr(self) -> str:
        """Constructor arguments, for `print(model)`."""
        return f"lo={self.lo}, hi={self.hi}, accumulator={self.accumulator}"


def float_twin(model: nn.Sequential, inputs: Tensor, *, bits: int = 8) -> nn.Sequential:
    """Round a trained network: integer weights, and a `Quantizer` behind each batch norm and ReLU. The model is left as it is.

    Weights are rounded in steps of a channel's largest (of the layer's largest where no batch norm follows), activations in steps of the
    largest that the calibration inputs give. Batch norms take up all scales, exactly in real numbers.

    Args:
        model: Trained on integer-valued inputs; a sequence of layers that `quantize_batch_norm` knows.
        inputs: Calibration inputs, integer-valued; some hundreds are enough.
        bits: Of weights (signed) and activations (unsigned), 2 to 16.

    Returns:
        The twin, float64, in evaluation mode.

    Raises:
        UserError: If a layer is unknown or out of order, or bits are out of range.
    """
    check_bits(bits, least=2)
    twin, layers = nn.Sequential(), _layers(deepcopy(model).double().eval())
    x, scale = inputs.detach().double(), torch.ones(1, dtype=torch.float64)  # scale: units of the twin to one real unit
    modules = [layer for _, layer in layers]
    for (name, layer), before, after in zip(layers, [None, *modules[:-1]], [*modules[1:], None], strict=True):
        twin.add_module(name, layer)
        with torch.no_grad():
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                scale = scale * _round_weights_(layer, bits, by_channel=isinstance(after, BatchNorm))
                if layer.bias is not None:
                    layer.bias.mul_(scale)
                    if not isinstance(after, BatchNorm):
                        layer.bias.round_()
            elif isinstance(layer, BatchNorm):
                if not isinstance(after, nn.ReLU | Quantizer):
                    raise UserError(f"layer {name}: a batch norm without ReLU behind it, but levels are never negative; put a ReLU there")
                if layer.running_mean is None or layer.running_var is None:
                    raise UserError(f"layer {name}: a batch norm without running statistics; train it with track_running_stats=True")
                layer.running_mean.mul_(scale)
                layer.running_var.add_(layer.eps).mul_(scale**2).sub_(layer.eps)  # so that sqrt(var + eps) takes the scale up exactly
                scale = torch.ones_like(scale[:1])
            elif isinstance(layer, nn.ReLU):
                if not isinstance(before, BatchNorm):
                    raise UserError(f"layer {name}: ReLU without a batch norm before it; put one there")
                if not isinstance(after, Quantizer):
                    step = x.max() / (2**bits - 1) if x.max() > 0 else x.new_ones(())
                    twin.add_module(f"{name}_levels", Quantizer(float(step), bits=bits))
                    scale = 1 / step.view(1)
    return twin.eval()


def _round_weights_(layer: nn.Conv2d | nn.Linear, bits: int, *, by_channel: bool) -> Tensor:
    """Weights to integers up to 2^(bits - 1) - 1, in place; returns what they were multiplied by, (C,) or (1,)."""
    each = layer.weight.abs().flatten(1).amax(1)
    largest = each if by_channel else each.max().view(1)
    scale: Tensor = (2 ** (bits - 1) - 1) / torch.where(largest > 0, largest, 1)
    layer.weight.copy_((layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))).round())
    return scale


def _layers(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """The layers in order, those that do nothing in evaluation left out."""
    if not isinstance(model, nn.Sequential):
        raise UserError(f"a {type(model).__name__}: must be an nn.Sequential of {KNOWN}; residual nets add what has different steps")
    known = (nn.Conv2d, nn.Linear, BatchNorm, nn.ReLU, Quantizer, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
    for name, layer in model.named_children():
        if not isinstance(layer, known):
            raise UserError(f"layer {name}: unknown layer {type(layer).__name__}; known are {KNOWN}")
    return [(name, layer) for name, layer in model.named_children() if not isinstance(layer, nn.Dropout | nn.Identity)]


def quantize_batch_norm(twin: nn.Sequential, *, lo: int = 0, hi: int = 255, accumulator: torch.dtype = torch.int64) -> nn.Sequential:
    """The same network in integers: each batch norm, with the ReLU and the `Quantizer` behind it, becomes a `QuantizedBatchNorm`.

    Args:
        twin: In evaluation mode, with integer-valued weights: made by `float_twin`, or trained so. Biases before a batch norm may be real.
        lo: Smallest input.
        hi: Largest input.
        accumulator: torch.int32 or torch.int64: holds every sum, which is proven for any inputs in lo..hi.

    Returns:
        torch's own layers with integer weights, and `QuantizedBatchNorm`, behind an `IntegerInput`; for any input its levels are those of
        the twin in float64, bit for bit. It runs on a CPU: CUDA has no products of such integers.

    Raises:
        UserError: If a layer is unknown, out of order, in training mode or not integer-valued; if the accumulator is too narrow; or if
            float64 rounds a half-way value of the twin to the other level than exact arithmetic does.
    """
    network = nn.Sequential(OrderedDict(input=IntegerInput(lo, hi, accumulator)))
    least, most = torch.tensor([lo]), torch.tensor([hi])
    layers, bias = deque(_layers(deepcopy(twin).double())), torch.zeros(1, dtype=torch.float64)
    while layers:
        name, layer = layers.popleft()
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if layers and isinstance(layers[0][1], BatchNorm) and layer.bias is not None:
                bias, layer.bias = layer.bias.detach(), None
            least, most = _to_integers_(name, layer, least, most, accumulator)
        elif isinstance(layer, BatchNorm):
            tail = [layer] + [layers.popleft()[1] for kind in (nn.ReLU, Quantizer) if layers and isinstance(layers[0][1], kind)]
            layer = _quantized(name, nn.Sequential(*tail), least, most, bias, accumulator)
            least, most, bias = torch.tensor([0]), torch.tensor([2**layer.bits - 1]), torch.zeros(1)
        elif not isinstance(layer, nn.MaxPool2d | nn.Flatten):
            raise UserError(f"layer {name}: {type(layer).__name__} without a batch norm before it; put one there")
        network.add_module(name, layer)
    return network.eval()


def _to_integers_(name: str, layer: nn.Conv2d | nn.Linear, lo: Tensor, hi: Tensor, accumulator: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights to the accumulator's type, in place; returns bounds of each output channel, which hold for all partial sums too."""
    for kind, values in layer.named_parameters():
        if not torch.equal(values, values.round()):
            raise UserError(f"layer {name}: {kind} is not of integers; round it with bigbatch.layers.float_twin")
        setattr(layer, kind, nn.Parameter(values.detach().to(accumulator), requires_grad=False))
    low, high = min(int(lo.min()), 0), max(int(hi.max()), 0)  # with the zeros of padding, and of what is not yet added
    up, down = (each.flatten(1).sum(1) for each in (layer.weight.long().clamp(min=0), layer.weight.long().clamp(max=0)))
    bias = torch.zeros_like(up) if layer.bias is None else layer.bias.long()
    least, most = up * low + down * high + bias.clamp(max=0), up * high + down * low + bias.clamp(min=0)
    limit = min(torch.iinfo(accumulator).max, 2**53)  # up to which float64 is exact
    if (largest := int(torch.maximum(-least, most).max())) > limit:
        raise UserError(f"layer {name}: sums reach {largest:,}: must not pass {limit:,} in {accumulator}; take torch.int64, or fewer bits")
    return least, most


def _quantized(name: str, tail: nn.Sequential, lo: Tensor, hi: Tensor, bias: Tensor, accumulator: torch.dtype) -> QuantizedBatchNorm:
    """Batch norm, ReLU and quantiser in one, proven equal to what they are in float64."""
    norm, quantizer = tail[0], tail[-1]
    if not isinstance(quantizer, Quantizer):
        raise UserError(f"layer {name}: a batch norm without a Quantizer behind it (and ReLU, if any, between); make one with float_twin")
    assert isinstance(norm, BatchNorm)
    lo, hi, step, bits = lo.expand(norm.num_features), hi.expand(norm.num_features), float(quantizer.step), quantizer.bits
    try:
        layer = QuantizedBatchNorm.from_batch_norm(norm, lo=lo, hi=hi, step=step, bits=bits, bias=bias, accumulator=accumulator)
    except UserError as error:
        raise UserError(f"layer {name}: {error}") from None
    points = critical_points(fold_batch_norm(norm, step=step, bias=bias), lo, hi, bits=bits)
    rows = [[x for side in sides for x, _ in side] for sides in points]
    X = torch.tensor([row + row[:1] * (max(map(len, rows)) - len(row)) for row in rows]).T  # (n, C)
    shape = (*X.shape, 1, 1) if isinstance(norm, nn.BatchNorm2d) else X.shape
    with torch.no_grad():
        wanted = tail((X.double() + bias).view(shape)).view(X.shape)
    for n, c in (wanted != layer(X)).nonzero().tolist()[:1]:
        raise UserError(
            f"layer {name}: channel {c}: X = {X[n, c]} falls half-way between two levels, and float64 rounds it to {wanted[n, c]:g}, exact "
            f"arithmetic to {layer(X)[n, c]}; change the quantiser's step a little"
        )
    return layer
