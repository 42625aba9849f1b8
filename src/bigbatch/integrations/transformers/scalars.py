"""Noise scales as the numbers of a log."""

import math
from collections.abc import Iterable

from bigbatch.core.checks import UserError
from bigbatch.noise.monitor import NoiseScaleMonitor


def scalars(monitor: NoiseScaleMonitor, *, layers: Iterable[str] = (), last: int, confidence: float) -> dict[str, float]:
    """The noise scale and its interval, in samples; those that are not finite are left out. Every process calls it at the same time.

    Args:
        monitor: That measured.
        layers: Parts of the model that are told too.
        last: Updates.
        confidence: Of the interval.
    """
    try:
        whole = monitor.estimate(last=last, confidence=confidence)
        values = {"noise_scale": whole.noise_scale, "noise_scale_lower": whole.lower, "noise_scale_upper": whole.upper}
        values |= {f"noise_scale/{name}": monitor.estimate(name, last=last, confidence=confidence).noise_scale for name in layers}
    except UserError:  # no update tells anything yet: the monitor warns
        return {}
    return {name: value for name, value in values.items() if math.isfinite(value)}
