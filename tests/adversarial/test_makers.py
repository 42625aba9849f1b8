from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch import nn

from bigbatch.adversarial.fgsm import Attack
from bigbatch.adversarial.makers import StreamMaker
from bigbatch.core.checks import UserError

SCRIPT = Path(__file__).with_name("maker_ranks.py")


@pytest.mark.parametrize("name", ["what_one_would_make_oneself", "training_goes_on_meanwhile", "a_trainer_that_stops"])
def test_two_ranks(tmp_path, name):
    run_ranks(SCRIPT, 2, tmp_path, name)


def test_a_lost_maker_is_an_error_at_once(tmp_path):
    logs = run_ranks(SCRIPT, 2, tmp_path, "a_lost_maker")
    assert "lost after" in logs[0]


def test_a_maker_outwaits_a_trainer_that_evaluates(tmp_path):
    """Exchanges time out after 2 s here; between two orders 4 may pass."""
    run_ranks(SCRIPT, 2, tmp_path, "a_slow_trainer")


def test_only_a_gpu_has_streams():
    with pytest.raises(UserError, match="a second stream on cpu: only a GPU has streams"):
        StreamMaker(Attack(nn.Linear(1, 1), lambda outputs, _: outputs), torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stream_makes_what_the_trainer_would_and_keeps_its_weights():
    device = torch.device("cuda", 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10)).to(device)
    attack = Attack(model, nn.CrossEntropyLoss(reduction="none"))
    pieces = [(torch.randn(256, 64, device=device), torch.randint(10, (256,), device=device)) for _ in range(4)]
    expected = attack.directions(pieces, 7)
    promise = StreamMaker(attack, device)(pieces, 7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # the trainer's next step
    for direction, other in zip(promise(), expected, strict=True):
        assert torch.equal(direction, other)
