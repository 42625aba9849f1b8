from pathlib import Path

import torch
from tests.distributed.ranks import run_ranks
from torch import nn

from bigbatch.comm.gossip.ad_psgd import ADPSGD, average_with_neighbour


def test_hand_worked():  # 1 and 3 meet at 2; the one that moved by 0.5 meanwhile ends at 2.5
    a, b = torch.tensor(1.0), torch.tensor(3.0)
    assert average_with_neighbour(a + 0.5, a, b).item() == 2.5
    assert average_with_neighbour(b, b, a).item() == 2.0


def test_four_workers(tmp_path):
    """The mean is kept to rounding, all come together, targets are met, and a slow worker holds nobody up."""
    run_ranks(Path(__file__).with_name("ad_psgd_ranks.py"), 4, tmp_path)


def test_two_workers_with_weights_on_a_gpu(tmp_path):
    """The same, with a stand-in for the GPU: messages are the CPU's, and nothing mixes devices."""
    run_ranks(Path(__file__).with_name("ad_psgd_ranks.py"), 2, tmp_path, "on a GPU")


def test_alone_it_is_the_optimizer():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ADPSGD(model).running() as comm:
        model(torch.ones(4, 2)).sum().backward()
        expected = [p - 0.1 * p.grad for p in model.parameters()]
        optimizer.step()
        comm.after_step(optimizer, 1)
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value.detach())


def test_an_error_of_one_worker_ends_both_at_once(tmp_path):
    """The passive one used to wait for its neighbours' last update before it said why."""
    run_ranks(Path(__file__).with_name("ad_psgd_ranks.py"), 2, tmp_path, "one fails")
