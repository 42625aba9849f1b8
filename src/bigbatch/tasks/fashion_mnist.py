"""What the Fashion-MNIST tasks share: the data, cross-entropy and accuracy."""

from pathlib import Path

from bigbatch.core.environment import DATA, read_variable
from bigbatch.tasks.classification import Classification
from bigbatch.tasks.data.fashion_mnist import fashion_mnist
from bigbatch.tasks.task import Splits


class FashionMNIST(Classification):
    """Base of the Fashion-MNIST tasks.

    Args:
        data: Folder with the four .gz files; None looks in `BIGBATCH_DATA`, the cache, the system's data folder and on the network.
    """

    def __init__(self, data: str | Path | None = None) -> None:
        folder = data or read_variable(DATA)
        self._data = Path(folder) if folder else None

    def splits(self) -> Splits:
        """55,000 / 5,000 / 10,000 images of 28 x 28.

        Raises:
            DataError: If the data is missing or damaged.
        """
        return fashion_mnist(self._data)
