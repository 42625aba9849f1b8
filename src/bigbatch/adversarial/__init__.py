"""Adversarial examples as a regulariser: made from a batch, trained on beside it."""

from bigbatch.adversarial.concurrent import ConAdv, loss_weights, made_here, share_at
from bigbatch.adversarial.fgsm import Attack, check_eps, fgsm_step, input_gradient

__all__ = ["Attack", "ConAdv", "check_eps", "fgsm_step", "input_gradient", "loss_weights", "made_here", "share_at"]
