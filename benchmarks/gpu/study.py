"""The cells of studies/optimizers at 64 times the tuned batch, five seeds each, several runs side by side on one GPU.

Runs that the study's own files have are not made again; each that ends is appended there, as studies/optimizers/run.py would.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.gpu.part import Part
from studies.optimizers import run as study

from bigbatch.core.checks import DataError
from bigbatch.core.json_lines import readable_lines
from bigbatch.study.grid import _identity, _stored_identity, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment

TASKS = ("fashion_mnist/cnn", "fashion_mnist/resnet8", "fashion_mnist/lstm", "fashion_mnist/mlp")
METHODS = ("muon", "lamb", "lars", "adam", "adamp", "legw", "linear", "sqrt", "none")
MULTIPLE, SEEDS, SIDE_BY_SIDE = "64", range(5), 8


def wanted(part):
    """Task, method and seed of the runs to make, the most telling methods first; and the cell of each."""
    if part.quick:
        return [("digits/mlp", method, seed, "8") for method in ("muon", "lamb") for seed in range(1)]
    return [(task, method, seed, MULTIPLE) for method in METHODS for task in TASKS for seed in SEEDS]


def cell_of(task, method, multiple, *, quick):
    (cell,) = study.cells(task, [method], [multiple], [1.0], None)
    return cell._replace(recipe=cell.recipe.replace({"budget.epochs": 1.0})) if quick else cell


def file_of(task, folder):
    return folder / f"{task.replace('/', '-')}.jsonl"


def done_in(path):
    """Identities of the runs that a file has."""
    return {_stored_identity(line) for line in readable_lines(path)} if path.exists() else set()


def one(task, method, seed, multiple, path, commit, quick):
    """In a process of its own."""
    torch.set_num_threads(1)
    facts = {"commit": commit, "environment": environment()}
    run_grid(load_task(task), [cell_of(task, method, multiple, quick=quick)], seeds=[seed], path=path, facts=facts)


def has_data(data):
    try:
        load_task("fashion_mnist/mlp", data=data).splits()
    except DataError as error:
        return str(error)
    return None


def main():
    part = Part("study")
    if not part.quick and (why := has_data(part.data)) is not None:
        part.row("data", None, error=f"{why[:250]}; carry the four files, and give --data FOLDER")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if part.quick else study.HERE
        jobs, done = [], {task: done_in(file_of(task, folder)) for task in {job[0] for job in wanted(part)}}
        for task, method, seed, multiple in wanted(part):
            cell = cell_of(task, method, multiple, quick=part.quick)
            if _identity(cell.key, cell.recipe.replace({"seed": seed}).to_dict()) not in done[task]:
                jobs.append((task, method, seed, multiple))
        run_all(part, jobs, folder)


def run_all(part, jobs, folder):
    """Side by side; each writes a file of its own, whose line is appended to the study's when it is whole."""
    limit = 2 if part.quick else min(SIDE_BY_SIDE, max(1, (os.cpu_count() or 1) // 2))
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"BIGBATCH_DATA": str(part.data)} if part.data else {})
    waiting, running, ended, failed, total = list(jobs), {}, 0, 0, len(jobs)
    with tempfile.TemporaryDirectory() as own:
        while waiting or running:
            while waiting and len(running) < limit and part.left() > 20:
                job = waiting.pop(0)
                path = Path(own) / f"{len(waiting)}.jsonl"
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.gpu.study",
                    "--one",
                    json.dumps([*job, str(path), part.facts.get("commit"), part.quick]),
                ]
                running[subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=path.with_suffix(".err").open("w"))] = (
                    job,
                    path,
                )
            for process, (job, path) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[process]
                if process.returncode:
                    failed += 1
                    lines = [line for line in path.with_suffix(".err").read_text().splitlines() if line.strip()]
                    part.row(" ".join(map(str, job)), None, error=(lines or ["ended without a word"])[-1][:200])
                    continue
                ended += 1
                keep(part, job, path, folder)
                part.row("runs made", ended, f"of {total} that the study lacked")
            if part.left() < 3 or (waiting and not running):
                break
            time.sleep(0.1)
        for process in running:
            process.kill()
            process.wait()
    if ended == total:
        part.row("runs made", ended, f"of {total} that the study lacked")
        part.finish()


def keep(part, job, path, folder):
    """Append a run's line to the study's file."""
    text = path.read_text()
    with file_of(job[0], folder).open("a") as file:
        file.write(text)
    score = json.loads(text)["test_score"]
    told = "diverged" if score is None else round(100 * score, 2)
    name = f"{job[0]}, {job[1]}, x{job[3]}: accuracy of seeds"
    seeds = next((dict(row["seeds"]) for row in part.rows if row["what"] == name), {}) | {str(job[2]): told}
    part.row(name, " ".join(str(seeds[seed]) for seed in sorted(seeds)), "%", seeds=seeds)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        task, method, seed, multiple, path, commit, quick = json.loads(sys.argv[2])
        one(task, method, seed, multiple, Path(path), commit, quick)
    else:
        main()
