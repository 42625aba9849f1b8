"""Signal and noise, averaged over updates: what most rules of the family look at.

Each is averaged by itself and the means are divided: a ratio of means, never a mean of ratios. Single updates may be negative and go
into the means as they are: clipping before averaging would bias the means upward. Only the mean of the noise is clipped, at zero.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bigbatch.batching.decision import UpdateMeasurement
from bigbatch.core.checks import UserError
from bigbatch.core.tensors.average import RunningMean

MIN_UPDATES = 20
"""Updates that a rule must have seen before it says anything (reasoned: the means of fewer are mostly noise themselves)."""


def noise_scale(signal: float, noise: float) -> float:
    """B_simple = tr(S) / |G|^2, samples, from averaged values.

    Args:
        signal: |G|^2. Not above zero: no signal above the noise.
        noise: tr(S), 0 or more.

    Returns:
        The noise scale; infinity where there is no signal.

    >>> noise_scale(2.0, 8.0), noise_scale(-0.1, 8.0)
    (4.0, inf)
    """
    return noise / signal if signal > 0 else math.inf


class SmoothedNoise:
    """Running means of signal and noise, and of further quantities where a rule needs them.

    An update in which one of them is not finite (not measured, or overflowed) is skipped whole, and counted.

    Args:
        decay: Of the exponential means, from 0 to below 1.
        also: Further fields of `UpdateMeasurement` to average, such as "loss".

    Attributes:
        num_seen: Updates in the means.
        num_skipped: Updates left out.

    Raises:
        UserError: If `decay` is not from 0 to below 1.

    >>> smoothed = SmoothedNoise(decay=0.5)
    >>> smoothed.observe(UpdateMeasurement(global_batch=8, signal=1.0, noise=8.0))
    >>> smoothed.observe(UpdateMeasurement(global_batch=8, signal=float("nan"), noise=9.0))
    >>> smoothed.noise_scale, smoothed.num_seen, smoothed.num_skipped
    (8.0, 1, 1)
    """

    def __init__(self, decay: float = 0.99, *, also: Sequence[str] = ()) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay = {decay}: must lie from 0 to below 1; 0.99 averages over about 100 updates")
        self.num_seen = self.num_skipped = 0
        self._means = {name: RunningMean(decay) for name in ("signal", "noise", *also)}

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        values = {name: getattr(seen, name) for name in self._means}
        if not all(math.isfinite(value) for value in values.values()):
            self.num_skipped += 1
            return
        self._means = {name: mean.update(values[name]) for name, mean in self._means.items()}
        self.num_seen += 1

    def mean(self, name: str) -> float:
        """The mean of a field, as it is; NaN before the first update."""
        return self._means[name].value

    @property
    def signal(self) -> float:
        """The mean of |G|^2; may be negative. NaN before the first update."""
        return self.mean("signal")

    @property
    def noise(self) -> float:
        """The mean of tr(S), clipped at zero after averaging. NaN before the first update."""
        mean = self.mean("noise")
        return 0.0 if mean < 0 else mean

    @property
    def noise_scale(self) -> float:
        """B_simple of the means, samples; infinity where the signal is not above the noise."""
        return noise_scale(self.signal, self.noise)

    @property
    def ready(self) -> bool:
        """Whether enough updates were seen to say something."""
        return self.num_seen >= MIN_UPDATES

    @property
    def words(self) -> str:
        """The noise scale, for a reason."""
        if self.signal > 0:
            return f"noise scale {self.noise_scale:,.1f} over {self.num_seen:,} updates"
        return f"no signal above the noise over {self.num_seen:,} updates"

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        means = {name: [mean.biased, mean.weight] for name, mean in self._means.items()}
        return {"num_seen": self.num_seen, "num_skipped": self.num_skipped, "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.num_seen, self.num_skipped = state["num_seen"], state["num_skipped"]
        self._means = {name: RunningMean(mean.decay, *state["means"][name]) for name, mean in self._means.items()}


class SmoothedRule:
    """What rules share that remember running means and nothing else: they add a `wish`.

    Args:
        decay: As of `SmoothedNoise`.
        also: As of `SmoothedNoise`.
    """

    def __init__(self, decay: float, *, also: Sequence[str] = ()) -> None:
        self.smoothed = SmoothedNoise(decay, also=also)

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        self.smoothed.observe(seen)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        return self.smoothed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.smoothed.load_state_dict(state)
