import pytest
import torch

from bigbatch.comm.ranks import Ranks
from bigbatch.train.state import agreed_flags
from bigbatch.train.state.agreed_flags import AgreedFlags, Flags, interval_s


class Clock:
    """Stands until it is moved."""

    now = 0.0

    def monotonic(self):
        return self.now


def agreements(monkeypatch, *, every_s, agreement_s, update_s=0.03, total_s=100.0):
    """Seconds that agreements took of a run's, and how long the longest pause between two was; what follows each takes as long again."""
    clock = Clock()
    monkeypatch.setattr(agreed_flags, "time", clock)

    def slow(_, values):
        clock.now += agreement_s
        return values

    monkeypatch.setattr(Ranks, "max_", slow)
    monkeypatch.setattr(Ranks, "host_device", torch.device("cpu"))
    flags, spent, longest, last = AgreedFlags(Ranks(0, 2, torch.device("cpu")), every_s=every_s), 0.0, 0.0, 0.0
    while clock.now < total_s:
        clock.now += update_s
        before = clock.now
        if flags.poll(interrupted=False, save=False) is not None:
            longest, last = max(longest, before - last), before
            clock.now += agreement_s
            spent += 2 * agreement_s
    return spent / clock.now, longest


@pytest.mark.parametrize(("agreement_s", "most", "longest_s"), [(0.0001, 0.01, 0.3), (0.02, 0.08, 1.0), (0.3, 0.16, 5.7)])
def test_they_cost_little_on_any_link(monkeypatch, agreement_s, most, longest_s):
    """With 20 ms to each of three others it was half of the time."""
    share, longest = agreements(monkeypatch, every_s=0.25, agreement_s=agreement_s)
    assert share < most
    assert longest < longest_s


def test_every_update_where_that_is_asked_for(monkeypatch):
    _, longest = agreements(monkeypatch, every_s=0.0, agreement_s=0.3)
    assert longest == pytest.approx(0.3 + 0.3 + 0.03)


def test_hand_worked():  # 50 ms and what follows as long again: a twentieth of 2 s
    assert interval_s(0.25, 0.05) == pytest.approx(2.0)


def test_alone_the_clock_decides(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(agreed_flags, "time", clock)
    flags = AgreedFlags(Ranks(), every_s=0.25)
    assert flags.poll(interrupted=False, save=True) is None
    assert flags.poll(interrupted=True, save=False) == Flags(True, False)
    clock.now += 0.3
    assert flags.poll(interrupted=False, save=True) == Flags(False, True)
