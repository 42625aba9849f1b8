"""What the studies in this repository show, by the optimizer of the reference, and how far that reaches.

studies/optimizers runs every rule as `plan` writes it, nothing tuned, and judges by the test of `bigbatch scale`. These claims are read off
its records by tests/scaling/test_auto.py. "Held": no task was shown to lose more than the margin, 0.5 points of accuracy or 0.02 nats.
"""

from typing import NamedTuple

STUDY = "studies/optimizers"


class Evidence(NamedTuple):
    """Of references with one optimizer.

    Attributes:
        tasks: That were measured.
        models: Their kind, in words.
        rule: That held furthest.
        reach: Largest multiple at which it was shown to lose on none of them; 1 if there is none.
        keeps: The best rule among those that keep the reference's optimizer.
        most_updates: Of the longest reference.
    """

    tasks: tuple[str, ...]
    models: str
    rule: str
    reach: float
    keeps: str
    most_updates: int


EVIDENCE = {
    "sgd": Evidence(
        ("digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/lstm", "fashion_mnist/resnet8"),
        "perceptrons, convolutional networks and an LSTM on small images",
        rule="muon",
        reach=16.0,
        keeps="legw",
        most_updates=5157,
    ),
    "adamw": Evidence(
        ("text/gpt", "text/lstm", "fashion_mnist/vit"),
        "small transformers and an LSTM, on text and images",
        rule="muon",
        reach=4.0,
        keeps="adamw",
        most_updates=2149,
    ),
    "muon": Evidence(
        ("text/gpt", "text/lstm", "fashion_mnist/vit"),
        "small transformers and an LSTM, on text and images",
        rule="muon",
        reach=4.0,
        keeps="muon",
        most_updates=2149,
    ),
}
"""By the reference's optimizer."""

BEYOND = 10.0
"""A reference with more than so many times the updates of the longest that was measured is outside the evidence."""
