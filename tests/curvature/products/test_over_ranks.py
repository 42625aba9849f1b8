from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.over_ranks import Share, mean_over_ranks


@pytest.mark.parametrize("world", [2, 4])
def test_workers_equal_one(world, tmp_path):
    assert "all agree" in run_ranks(Path(__file__).with_name("curvature_ranks.py"), world, tmp_path)[0]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (Share(torch.zeros(2), 0), "batches: none"),
        (Share(torch.zeros(2), 3, connected=False), "loss: has no graph to the chosen parameters"),
        (Share(torch.tensor([1.0, float("nan")]), 3), "a derivative of the loss is not finite"),
    ],
)
def test_no_mean(share, message):
    with pytest.raises(UserError, match=message):
        mean_over_ranks(lambda: share, None, torch.device("cpu"))
