"""The examples for clusters: Slurm's by a srun and a scontrol of our own, Kubeflow's by its own models."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bigbatch.train.state.record import read_record

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "examples" / "cluster"
SRUN = """#!/bin/sh
# Starts the command once a node, side by side, hands signals on, and ends as the worst of them.
trap 'kill -TERM $A $B' TERM
SLURM_NODEID=0 SLURM_PROCID=0 "$@" & A=$!
SLURM_NODEID=1 SLURM_PROCID=1 "$@" & B=$!
wait $A; CODE=$?
while kill -0 $A 2>/dev/null; do wait $A; CODE=$?; done
wait $B
while kill -0 $B 2>/dev/null; do wait $B; done
exit $CODE
"""
SCONTROL = """#!/bin/sh
# `scontrol show hostnames LIST`: who reads the first line alone is gone before the second, which then ends a script with `pipefail`.
echo 127.0.0.1
sleep 0.3
echo node-2
"""


@pytest.fixture
def slurm(tmp_path):
    """What sbatch would set, and its programs first on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    own = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[1-2]", "RUN": str(tmp_path / "run")}
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | own | {"PATH": path, "WORKERS": "1", "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}


def is_free(port):
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) != 0


def start(slurm, *arguments):
    command = ["bash", str(CLUSTER / "slurm.sh"), *arguments]
    port = next(port for port in random.sample(range(20_000, 30_000), 100) if is_free(port))  # no process is given one of these by chance
    slurm = slurm | {"PORT": str(port)}
    return subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def ended(process, seconds=150):
    try:
        said, _ = process.communicate(timeout=seconds)
        return said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_slurm_s_nodes_train_together_and_go_on_after_the_time_limit(slurm, tmp_path):
    long = ["digits/mlp", "--set", "budget.epochs=2000", "--save-every", "1000", "--quiet"]
    process, record = start(slurm, *long), tmp_path / "run" / "record.jsonl"
    for _ in range(600):
        if record.exists() and record.read_text().count("\n") > 3:
            break
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # Slurm, two minutes before the limit
    said = ended(process)
    assert (tmp_path / "run" / "last.pt").exists(), said
    reached = [line["update"] for line in read_record(record) if line["kind"] == "update"][-1]
    assert reached > 0
    assert read_record(record)[0]["workers"] == 2
    again = start(slurm, *long)
    for _ in range(600):
        updates = [line["update"] for line in read_record(record) if line["kind"] == "update"]
        if updates[-1] > reached:
            break
        time.sleep(0.2)
    os.kill(again.pid, signal.SIGTERM)
    said = ended(again)
    assert updates[-1] > reached, said
    assert updates == sorted(updates)


def test_the_script_is_what_bash_reads():
    assert subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=False).returncode == 0


def test_kubeflow_knows_every_field_of_the_job():
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    given = yaml.safe_load((CLUSTER / "trainjob.yaml").read_text())
    job = TrainerV1alpha1TrainJob.from_dict(given)
    kept = json.loads(job.to_json())
    assert kept == given  # nothing is dropped: a field of another name would be
    assert job.spec.trainer.command + job.spec.trainer.args == [
        *("torchrun", "-m", "bigbatch", "train", "fashion_mnist/mlp", "--global-batch", "1024", "--out", "/runs/mlp")
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_under_ray_train(tmp_path):
    """In a process of its own: Ray's cluster ends with it."""
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_DOCKER_CPU_WARNING": "1", "RAY_TRAIN_V2_ENABLED": "1"}
    command = [sys.executable, str(CLUSTER / "ray_train.py"), str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert "updates of 2 workers" in done.stdout + done.stderr
    assert read_record(tmp_path / "runs" / "digits" / "record.jsonl")[0]["workers"] == 2
