import math

import pytest

from bigbatch.core.checks import UserError
from bigbatch.simulate.link import Link, link_of


def test_hand_worked():
    """50 Gbit/s are 6.25e9 bytes/s: 0.16 ns a byte; additions at 10 GB/s: 0.1 ns."""
    link = link_of(bandwidth_bytes_per_s=6.25e9, latency_s=5e-5, reduce_bytes_per_s=1e10)
    assert link == pytest.approx((5e-5, 1.6e-10, 1e-10))
    assert link.reduced_s_per_byte == pytest.approx(2.6e-10)
    assert link.message.seconds(1e6) == pytest.approx(5e-5 + 1.6e-4)
    assert link_of(bandwidth_bytes_per_s=4.0, latency_s=0.0) == Link(0.0, 0.25)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"bandwidth_bytes_per_s": 0.0, "latency_s": 1.0}, "bandwidth_bytes_per_s = 0.0: must be a finite number above zero"),
        ({"bandwidth_bytes_per_s": 1.0, "latency_s": -1.0}, "latency_s = -1.0: must be a finite number, zero or above; give the seconds"),
        ({"bandwidth_bytes_per_s": 1.0, "latency_s": math.nan}, "latency_s = nan"),
        (
            {"bandwidth_bytes_per_s": 1.0, "latency_s": 0.0, "reduce_bytes_per_s": 0.0},
            "reduce_bytes_per_s = 0.0: must be above zero",
        ),
    ],
)
def test_refuses(figures, message):
    with pytest.raises(UserError, match=message):
        link_of(**figures)
