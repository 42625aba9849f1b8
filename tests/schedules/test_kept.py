import copy

import pytest
import torch

from bigbatch.core.checks import Diverged
from bigbatch.schedules import Kept


def test_at_most_two_copies_and_the_last_before_the_minimum_comes_back():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def save():
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def load(states):
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])

    kept, states = Kept(save, load), {}
    for samples in range(0, 1000, 100):
        kept.keep(samples, minimum=min(samples, 490))
        states[samples] = save()
        assert len(kept.copies) <= 2
        model(torch.ones(2)).backward()
        optimizer.step()
    assert kept.go_back(minimum=490) == 400
    assert torch.equal(model.weight, states[400][0]["weight"])
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], states[400][1]["state"][0]["exp_avg"])
    assert kept.copies == []


def test_nothing_to_go_back_to():
    with pytest.raises(Diverged, match="no weights were kept to go back to"):
        Kept(lambda: 0, lambda copied: None).go_back(minimum=0)
