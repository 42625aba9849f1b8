from pathlib import Path

from tests.distributed.ranks import run_ranks

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


def test_the_papers_recursion_by_real_processes(tmp_path):
    """X_k+1 = X_k W' - gamma G(X_k) to 1e-10, on 4 workers and every kind of topology."""
    run_ranks(SCRIPT, 4, tmp_path, "recursion", "d_psgd")
