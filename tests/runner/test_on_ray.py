"""Runs on a Ray cluster: of two nodes on this machine, one of which is killed."""

import builtins
import threading
import time

import pytest
from tests.runner import scripts
from tests.runner.scripts import RECIPE

from bigbatch import UserError
from bigbatch.core.extras import MissingExtra
from bigbatch.runner import FunctionRunner, Request
from bigbatch.runner.jobs import Job, run_jobs
from bigbatch.runner.on_ray import OnRay

RUNS = 12
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()


def jobs_of(tmp_path, number=RUNS):
    recipe = RECIPE.replace({"budget.epochs": 0.1})
    return [Job(recipe.replace({"seed": seed}), Request(out=tmp_path / f"seed-{seed}", title=f"seed {seed}")) for seed in range(number)]


def test_a_node_that_dies_costs_no_run(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    jobs, done, before = jobs_of(tmp_path), [], []

    def runs_there(seed):
        marks = tmp_path / f"seed-{seed}" / "checkpoints" / "attempts"
        return seed not in done and marks.exists() and marks.read_text().split()[-1:] == [nodes[1].node_id]

    def kill():
        while len(done) < 2 or not any(map(runs_there, range(RUNS))):
            time.sleep(0.02)
        before.extend(done)
        cluster.remove_node(nodes[1], allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    with OnRay(cluster.address) as pool:
        results = run_jobs(pool, FunctionRunner(scripts.notes_its_node), jobs, done=lambda number, _: done.append(number))
    assert [result.test_score for result in results] == [90.0 + seed for seed in range(RUNS)]
    assert sorted(done) == list(range(RUNS))  # each once
    attempts = [(tmp_path / f"seed-{seed}" / "checkpoints" / "attempts").read_text().split() for seed in range(RUNS)]
    assert len({node for nodes in attempts for node in nodes}) == 2  # both have worked
    assert any(len(nodes) > 1 for nodes in attempts)  # a run was in the node that died
    assert all(len(attempts[seed]) == 1 for seed in before)  # finished ones were not made again


def test_without_a_shared_folder_files_come_back(cluster, tmp_path, monkeypatch):
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    monkeypatch.setattr("bigbatch.runner.on_ray._mark", lambda job: "a mark that no node finds")
    (job,) = jobs_of(tmp_path, 1)
    with OnRay(cluster.address) as pool:
        (result,) = run_jobs(pool, FunctionRunner(scripts.notes_its_node), [job])
    assert result.test_score == 90.0
    assert job.is_finished
    assert (job.request.out / "checkpoints" / "attempts").exists()


def test_an_address_that_can_t_be_reached():
    with pytest.raises(UserError, match="Ray at 127.0.0.1:1: can't be reached .*; check the address, and that the cluster runs"):
        OnRay("127.0.0.1:1")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    importing = builtins.__import__

    def without_ray(name, *args, **settings):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return importing(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(MissingExtra, match=r"runs on a Ray cluster needs ray, which is not installed: pip install 'bigbatch\[ray\]'"):
        OnRay()


def test_a_function_beside_its_settings_file_on_a_cluster_of_this_machine(tmp_path):
    from bigbatch.runner.settings_file import load_settings

    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "training_of_mine.py").write_text("def train(recipe, run):\n    return 90.0 + recipe.seed\n")
    settings = scripts.SETTINGS.partition("[command]")[0] + '[function]\nrun = "training_of_mine:train"\n'
    (tmp_path / "below" / "mine.toml").write_text(settings + 'metric = { name = "points", better = "higher", margin = 1.0 }\n')
    runner, _ = load_settings(tmp_path / "below" / "mine.toml")
    pool = OnRay()
    for number in range(2):  # it can be used again
        with pool:
            results = run_jobs(pool, runner, jobs_of(tmp_path / str(number), 2))
        assert [result.test_score for result in results] == [90.0, 91.0]
