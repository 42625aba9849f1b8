"""The Simple CNN ("base") of Shallue et al. 2018, arXiv:1811.03600, Appendix B, on Fashion-MNIST."""

from torch import nn

from bigbatch.tasks.fashion_mnist import FashionMNIST


class SimpleCNN(FashionMNIST):
    """Two convolutions of 5x5 with 32 and 64 filters, each before a max pooling, and a layer of 1,024 units with dropout of 0.4."""

    name = "simple_cnn"

    def model(self):
        """With torch's initialisation."""
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1024),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(1024, 10),
        )
