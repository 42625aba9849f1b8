"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): 60,000 + 10,000 grey images of 28 x 28, ten kinds of clothing."""

import functools
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bigbatch.tasks.classification import hold_out, standardise
from bigbatch.tasks.data.locate import locate
from bigbatch.tasks.task import Splits

NAME = "fashion-mnist"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
HOW_TO_GET = (
    "on Debian or Ubuntu `apt-get install dataset-fashion-mnist`; elsewhere download the four .gz files of "
    "github.com/zalandoresearch/fashion-mnist into a folder and name it with --data or BIGBATCH_DATA"
)
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}  # of the decompressed content
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, pixels in 0..1
NUM_VALIDATION = 5_000


def read_images(data: Path | None, part: str) -> tuple[Tensor, Tensor]:
    """Images as bytes (n, 28, 28) and labels (n,) of `part`, "train" or "t10k".

    Raises:
        DataError: If a file is missing or damaged.
    """
    pixels, labels = (
        locate(
            NAME,
            file,
            sha256=SHA256[file],
            decode=gzip.decompress,
            data=data,
            system=SYSTEM,
            urls=(f"{HOME}/{file}",),
            how_to_get=HOW_TO_GET,
        )
        for file in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
    )
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28).copy())
    return images, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


@functools.lru_cache(maxsize=1)
def fashion_mnist(data: Path | None = None) -> Splits:
    """55,000 training, 5,000 validation (the last of the training file) and 10,000 test images, standardised, (n, 1, 28, 28).

    Raises:
        DataError: If a file is missing or damaged.
    """
    images, labels = read_images(data, "train")
    test_images, test_labels = read_images(data, "t10k")
    test = TensorDataset(standardise(test_images, mean=MEAN, std=STD), test_labels)
    return hold_out(standardise(images, mean=MEAN, std=STD), labels, num_validation=NUM_VALIDATION, test=test)
