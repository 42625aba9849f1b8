from pathlib import Path

from tests.distributed.ranks import run_ranks

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


def test_the_papers_recursion_by_real_processes(tmp_path):
    run_ranks(SCRIPT, 4, tmp_path, "recursion", "dmsgd")
