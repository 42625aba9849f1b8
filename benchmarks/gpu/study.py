"""Cells of studies/optimizers, several runs side by side on one GPU: AdamW and Muon references first, then x64 of the others.

Runs that the study's own files have are not made again; each that ends is appended there, as studies/optimizers/run.py would. Workers are
processes that make one run after the other: on a GPU machine a new one takes as long to start as a run.
"""

import json
import multiprocessing
import os
import queue
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from benchmarks.gpu.part import Part
from studies.optimizers import run as study

from bigbatch import Recipe
from bigbatch.core.json_lines import readable_lines
from bigbatch.study.grid import _identity, _stored_identity, run_grid
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.state.record import environment

ADAPTIVE = ("text/gpt", "text/lstm", "fashion_mnist/vit", "text/gpt-muon", "text/lstm-muon", "fashion_mnist/vit-muon")
OTHERS = ("fashion_mnist/cnn", "fashion_mnist/resnet8", "fashion_mnist/lstm", "fashion_mnist/mlp")
METHODS = ("muon", "lamb", "lars", "adam", "adamp", "legw", "linear", "sqrt", "none")
SIDE_BY_SIDE = 14


def wanted(part):
    """Reference, method, multiple and seed of the runs to make, the most telling first."""
    if part.quick:
        return [("digits/mlp", method, "8", 0) for method in ("muon", "lamb")]
    references = [(name, "none", "1", seed) for seed in range(3) for name in ADAPTIVE]
    cells = [
        (name, method, multiple, seed)
        for multiple, seed, name in product(("16", "4", "64"), range(3), ADAPTIVE)
        for method in study.methods_of(name)
    ]
    return [*references, *cells, *((name, method, "64", seed) for method in METHODS for name in OTHERS for seed in range(5))]


def cell_of(name, method, multiple, *, quick):
    (cell,) = study.cells(name, [method], [multiple], [1.0], None)
    return cell._replace(recipe=cell.recipe.replace({"budget.epochs": 1.0})) if quick else cell


def file_of(name, folder):
    return folder / f"{name.replace('/', '-')}.jsonl"


def identity_of(job, *, quick):
    cell = cell_of(*job[:3], quick=quick)
    return _identity(cell.key, cell.recipe.replace({"seed": job[3]}).to_dict())


def done_in(path):
    """Identities of the runs that a file has."""
    return {_stored_identity(line) for line in readable_lines(path)} if path.exists() else set()


def work(jobs, ended, facts, *, quick):
    """A worker: its jobs until there are none; tells of each what came of it, a line of the study or an error."""
    torch.set_num_threads(1)
    tasks = {}
    while (job := jobs.get()) is not None:
        name, method, multiple, seed = job
        try:
            task = tasks.setdefault(name, load_task(Recipe.named(name).task))
            with tempfile.TemporaryDirectory() as own:
                cell = cell_of(name, method, multiple, quick=quick)
                (line,) = run_grid(task, [cell], seeds=[seed], path=Path(own) / "run.jsonl", facts=facts)
            ended.put((job, line, None))
        except Exception as error:
            ended.put((job, None, f"{type(error).__name__}: {error}"[:200]))


def main():
    part = Part("study")
    if part.data:
        os.environ["BIGBATCH_DATA"] = str(part.data)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if part.quick else study.HERE
        done = {job[0]: done_in(file_of(job[0], folder)) for job in wanted(part)}
        jobs = [job for job in wanted(part) if identity_of(job, quick=part.quick) not in done[job[0]]]
        if run_all(part, jobs, folder) == len(jobs):
            part.finish()


def run_all(part, jobs, folder):
    """Side by side, until all are made or the time is over; returns how many ended."""
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    facts = {"commit": part.facts.get("commit"), "environment": environment()}
    limit = 2 if part.quick else min(SIDE_BY_SIDE, os.cpu_count() or 1)
    for job in [*jobs, *[None] * limit]:
        waiting.put(job)
    workers = [
        context.Process(target=work, args=(waiting, results, facts), kwargs={"quick": part.quick}, daemon=True) for _ in range(limit)
    ]
    for worker in workers:
        worker.start()
    ended, told, broken = 0, time.monotonic(), 0
    while ended + broken < len(jobs) and part.left() > 5 and any(worker.is_alive() for worker in workers):
        try:
            job, line, error = results.get(timeout=1)
        except queue.Empty:
            continue
        if error is not None:
            broken += 1
            part.row(" ".join(map(str, job)), None, error=error)
            continue
        ended += 1
        with file_of(job[0], folder).open("a") as file:
            file.write(json.dumps(line) + "\n")
        tell(part, job, line)
        if time.monotonic() - told > 5 or ended == len(jobs):
            told = time.monotonic()
            part.row("runs made", ended, f"of {len(jobs)} that the study lacked")
    part.row("runs made", ended, f"of {len(jobs)} that the study lacked")
    for worker in workers:
        worker.kill()
        worker.join()
    return ended


def tell(part, job, line):
    """A row of the part's file for each cell, with the scores of its seeds."""
    name, method, multiple, seed = job
    metric = metric_of(load_task(Recipe.named(name).task).metric)
    told = "diverged" if line["test_score"] is None else metric.number(metric.shown(line["test_score"]))
    what = f"{name}, {method}, x{multiple}: {metric} of seeds"
    seeds = next((dict(row["seeds"]) for row in part.rows if row["what"] == what), {}) | {str(seed): told}
    part.row(what, " ".join(seeds[number] for number in sorted(seeds)), metric.unit, seeds=seeds)


if __name__ == "__main__":
    main()
