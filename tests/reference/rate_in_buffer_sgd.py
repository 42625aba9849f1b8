"""Literal transcription of Goyal et al. 2017, Equation 10: momentum SGD that keeps the rate inside the buffer."""


class RateInBufferSGD:
    """v <- m v + eta g;  w <- w - v, on plain floats. Has what ClockLR needs of an optimizer through `torch.optim.Optimizer`."""

    def __init__(self, w: float) -> None:
        self.w, self.v = w, 0.0

    def step(self, g: float, *, lr: float, momentum: float) -> None:
        self.v = momentum * self.v + lr * g
        self.w = self.w - self.v
