"""One link: what a message between two hosts costs.

    T(b) = alpha + beta b,  and alpha + (beta + gamma) b for what the receiver adds to its own      [seconds, b in bytes]

Every host has one port that sends and one that receives, at the same time (full duplex); a port serves one message after the other.
alpha is what a program sees between two messages that wait for each other, not what `ping` shows. Measure it where it counts: with
`bigbatch doctor --workers N`, or as in `gloo_ring`.
"""

import math
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.simulate.alpha_beta import AlphaBeta


class Link(NamedTuple):
    """A host's connection to the others, who all have the same.

    Attributes:
        alpha_s: Seconds before the first byte of a message is there, >= 0.
        beta_s_per_byte: Seconds that each byte adds, >= 0.
        gamma_s_per_byte: Seconds to add a received byte to one's own, >= 0; 0 where a fit has it inside beta.
    """

    alpha_s: float
    beta_s_per_byte: float
    gamma_s_per_byte: float = 0.0

    @property
    def reduced_s_per_byte(self) -> float:
        """Beta + gamma."""
        return self.beta_s_per_byte + self.gamma_s_per_byte

    @property
    def message(self) -> AlphaBeta:
        """A message that is only received."""
        return AlphaBeta(self.alpha_s, self.beta_s_per_byte)


def link_of(*, bandwidth_bytes_per_s: float, latency_s: float, reduce_bytes_per_s: float = math.inf) -> Link:
    """A link from the figures that a data sheet gives.

    Args:
        bandwidth_bytes_per_s: Of each direction; 50 Gbit/s are 6.25e9.
        latency_s: alpha.
        reduce_bytes_per_s: How fast a host adds what it receives; infinite where that costs nothing.

    Returns:
        The link.

    Raises:
        UserError: If a figure is out of range.

    >>> link_of(bandwidth_bytes_per_s=4.0, latency_s=0.5)
    Link(alpha_s=0.5, beta_s_per_byte=0.25, gamma_s_per_byte=0.0)
    """
    check_positive("bandwidth_bytes_per_s", bandwidth_bytes_per_s)
    if not 0 <= latency_s < math.inf:
        raise UserError(f"latency_s = {latency_s}: must be a finite number, zero or above; give the seconds of an empty message")
    if not reduce_bytes_per_s > 0:
        raise UserError(f"reduce_bytes_per_s = {reduce_bytes_per_s}: must be above zero; leave it out where additions cost nothing")
    return Link(latency_s, 1 / bandwidth_bytes_per_s, 1 / reduce_bytes_per_s)
