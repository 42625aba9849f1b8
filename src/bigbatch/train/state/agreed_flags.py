"""A few times a second all workers agree on what only one of them knows: that someone pressed Ctrl-C, or that it is time to save.

The number of updates from one agreement to the next follows the first worker's clock and is told to the others, so that all of them
meet at the same update. Alone, the clock decides by itself. On a slow link an agreement takes as long as some updates, and with local
steps it is all that workers wait for: they agree less often then, for `SHARE` of the time, and at least every `LONGEST_S` seconds.
"""

import time
from typing import NamedTuple

import torch

from bigbatch.comm.ranks import Ranks

SHARE = 0.05
"""Of the time that agreements may take, those included that follow one at once, which take about as long."""
LONGEST_S = 5.0


class Flags(NamedTuple):
    """What was agreed on; the same on every worker."""

    interrupted: bool  # on any of them
    save: bool  # the first wants to


class AgreedFlags:
    """When to agree.

    Args:
        ranks: The workers.
        every_s: Seconds between two agreements, about, where they cost little; 0 agrees after every update.
    """

    def __init__(self, ranks: Ranks, *, every_s: float) -> None:
        self._ranks, self._every_s = ranks, every_s
        self._next, self._seen, self._began = 1, 0, time.monotonic()
        self._interval_s = every_s

    def poll(self, *, interrupted: bool, save: bool) -> Flags | None:
        """After each update.

        Args:
            interrupted: Whether this worker was asked to stop.
            save: Whether a checkpoint is due; only the first worker's counts.

        Returns:
            What was agreed on, or None if it is not yet time.
        """
        self._seen += 1
        elapsed = time.monotonic() - self._began
        if self._ranks.world_size == 1:
            if not interrupted and elapsed < self._every_s:
                return None
            self._began = time.monotonic()
            return Flags(interrupted, save)
        if self._seen < self._next:
            return None
        ahead = max(1, min(2 * self._seen, int(self._seen * self._interval_s / max(elapsed, 1e-9))))
        wishes = [float(interrupted), float(save), float(ahead)] if self._ranks.is_rank_0 else [float(interrupted), 0.0, 0.0]
        began = time.monotonic()
        agreed = self._ranks.max_(torch.tensor(wishes, device=self._ranks.host_device)).tolist()
        self._next, self._seen, self._began = int(agreed[2]), 0, time.monotonic()
        self._interval_s = interval_s(self._every_s, self._began - began)
        return Flags(bool(agreed[0]), bool(agreed[1]))


def interval_s(every_s: float, agreement_s: float) -> float:
    """Seconds from one agreement to the next, where one takes `agreement_s`, and what follows it as long again.

    >>> interval_s(0.25, 0.001), interval_s(0.25, 0.05), interval_s(0.25, 0.5), interval_s(0.0, 0.5)
    (0.25, 2.0, 5.0, 0.0)
    """
    return max(every_s, min(2 * agreement_s / SHARE, LONGEST_S)) if every_s else 0.0
