from pathlib import Path

import pytest
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_optimizers import MAKERS


@pytest.mark.parametrize("world", [2, 4])
def test_a_sharded_update_is_the_whole_update(world, tmp_path):
    """DTensor over one and two axes, fully_shard, uneven shards, and Muon's shared-out orthogonalisations; to 1e-6."""
    output = run_ranks(Path(__file__).with_name("sharded_optimizers.py"), world, tmp_path)
    assert output[0].count("equal") == len(MAKERS) * (4 if world == 2 else 7)
