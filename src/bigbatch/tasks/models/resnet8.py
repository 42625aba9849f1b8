"""ResNet-8: the smallest of He et al. 2016's CIFAR residual networks (6n + 2 layers, n = 1), arXiv:1512.03385, Section 4.2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_CHANNELS = 8
"""For channels-last: with fewer, the weight gradient of a strided 1x1 convolution writes outside of its memory in oneDNN's AVX2 kernel.

Seen with torch 2.13 on a processor without AVX-512: "corrupted double-linked list", in one backward pass of five.
"""


class ResidualBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3; a 1x1 convolution as the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def init_residual_(model: nn.Module, *, zero_init_last_gamma: bool) -> None:
    """He initialisation (fan-out) of convolutions and, if asked, gamma = 0 in the last norm of each block (Goyal et al., Section 5.1)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, ResidualBlock) and zero_init_last_gamma:
            nn.init.zeros_(module.bn2.weight)


def resnet8(width: int = 16, stride: int = 2, zero_init_last_gamma: bool = True, classes: int = 10) -> nn.Sequential:
    """Three residual blocks of `width`, 2 and 4 x `width` channels; input (n, 1, 28, 28).

    Args:
        width: Channels of the first block.
        stride: Of the stem; 2 makes the network four times cheaper on 28 x 28 images.
        zero_init_last_gamma: Whether each block starts as the identity.
        classes: Outputs.

    Returns:
        The network, channels-last from 8 channels on.
    """
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
    init_residual_(net, zero_init_last_gamma=zero_init_last_gamma)
    if width < FEWEST_CHANNELS:
        return net
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
