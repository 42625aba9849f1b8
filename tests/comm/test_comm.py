from pathlib import Path

import pytest
from tests.distributed.ranks import run_ranks


@pytest.mark.slow
@pytest.mark.bit_for_bit
@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_way_of_going_together(world, tmp_path):
    """All-reduce, compressed or watched, local steps and full sharding, each against one process with all samples."""
    output = run_ranks(Path(__file__).with_name("comm_ranks.py"), world, tmp_path)
    assert "all equal" in output[0]
