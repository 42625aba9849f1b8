import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.link import Link
from bigbatch.simulate.parameter_server import asynchronous_s, synchronous_s

LINK = Link(0.5, 0.25, 0.125)
sizes = {"workers": st.integers(1, 512), "servers": st.integers(1, 64)}


def test_synchronous_hand_worked():
    """4 workers, 2 servers: each takes in 2 x 8 bytes at 0.375 s, gives out as many at 0.25 s; two latencies."""
    assert synchronous_s(LINK, 8, workers=4, servers=2, compute_s=3.0) == 3 + 0.5 + 6 + 0.5 + 4


def test_more_servers_than_workers_leave_the_worker_its_own_port():
    assert synchronous_s(LINK, 8, workers=1, servers=4, compute_s=3.0) == 3 + 0.5 + 2 + 0.5 + 2


def test_asynchronous_hand_worked():
    """4 workers, 1 server: its port is busy for 4 x 8 x 0.375 s; with 100 s of computing, the worker's 100 + 0.5 + 3 + 0.5 + 2."""
    assert asynchronous_s(LINK, 8, workers=4, servers=1, compute_s=3.0) == 12.0
    assert asynchronous_s(LINK, 8, workers=4, servers=1, compute_s=100.0) == 106.0


@given(**sizes, compute_s=st.floats(0.1, 100), num_bytes=st.floats(1, 100))
def test_who_waits_for_nobody_is_never_later(workers, servers, compute_s, num_bytes):
    size = {"workers": workers, "servers": servers, "compute_s": compute_s}
    synchronous = synchronous_s(LINK, num_bytes, **size)
    assert asynchronous_s(LINK, num_bytes, **size) <= synchronous * (1 + 1e-9)
    assert synchronous_s(LINK, num_bytes, **{**size, "servers": servers + 1}) <= synchronous * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [synchronous_s, asynchronous_s])
@pytest.mark.parametrize("name", ["workers", "servers"])
def test_refuses_none(seconds, name):
    with pytest.raises(UserError, match=f"{name} = 0: must be 1 or more; give how many there are"):
        seconds(LINK, 8, **{"workers": 1, "servers": 1, "compute_s": 1.0, name: 0})
