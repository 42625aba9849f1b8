from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks

from bigbatch.comm.gossip.decentlam import corrected_gradient

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


def test_hand_worked():  # x = 1, g = 2, gamma = 0.5: s = 0; a neighbour of weight 1/4 has s = 4, so x - W s = 1 - 1 = 0 and gt = 0
    s, neighbour = 1 - 0.5 * 2, 4.0
    assert corrected_gradient(torch.tensor(2.0), torch.tensor(0.25 * (neighbour - s)), 0.5).item() == 0.0
    assert corrected_gradient(torch.tensor(2.0), torch.tensor(1.0), 0.0).item() == 2.0  # nothing moves


def test_the_papers_recursion_by_real_processes(tmp_path):
    run_ranks(SCRIPT, 4, tmp_path, "recursion", "decentlam")


def test_momentum_does_not_amplify_the_limit(tmp_path):
    """Ring of 8 real workers, heterogeneous quadratics, full gradients, momentum 0, 0.5, 0.8, 0.9."""
    decentlam, dmsgd = run_ranks(SCRIPT, 8, tmp_path, "limits")[0].splitlines()
    assert [float(v) for v in decentlam.split()[1:]] == pytest.approx([0.00846] * 4, abs=1e-5)
    assert [float(v) for v in dmsgd.split()[1:]] == pytest.approx([0.00846, 0.0313, 0.158, 0.463], rel=0.02)
