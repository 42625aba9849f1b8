from pathlib import Path

import pytest
from tests.distributed.ranks import run_ranks


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_and_micro_batches_agree(world, tmp_path):
    """1 process x 8 micro-batches, 2 x 4 and 4 x 2, under DistributedDataParallel; FSDP2 is refused."""
    assert "all agree" in run_ranks(Path(__file__).with_name("dual_norm_ranks.py"), world, tmp_path)[0]
