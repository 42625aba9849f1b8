"""Cells of studies/optimizers, several runs side by side on one GPU: AdamW and Muon references first, then x64 of the others.

The adaptive references are tuned first, by the stages of studies/reference_recipes, where that was not done.

Runs that the study's own files have are not made again; each that ends is appended there, as studies/optimizers/run.py would. Workers are
processes that make one run after the other: on a GPU machine a new one takes as long to start as a run.
"""

import heapq
import itertools
import json
import multiprocessing
import os
import queue
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.gpu.part import Part
from studies.optimizers import run as study
from studies.optimizers.variants import VARIANTS
from studies.reference_recipes import stages

from bigbatch import Recipe
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.study.grid import _identity, _stored_identity, run_grid
from bigbatch.study.search import search
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.state.record import environment

ADAPTIVE = ("text/gpt", "text/lstm", "fashion_mnist/vit", "text/gpt-muon", "text/lstm-muon", "fashion_mnist/vit-muon")
OTHERS = ("fashion_mnist/cnn", "fashion_mnist/resnet8", "fashion_mnist/lstm", "fashion_mnist/mlp")
METHODS = ("muon", "lamb", "lars", "adam", "adamp", "legw", "linear", "sqrt", "none")
SIDE_BY_SIDE = 14


class Job(NamedTuple):
    """A run: a trial of a search (settings alone), or a cell of the study, of a reference with these settings."""

    name: str
    settings: dict
    method: str | None = None
    multiple: str | None = None
    seed: int = 0


def cells_of(name, settings, *, quick):
    """Jobs of a reference that is tuned, each with its rank: the lowest is made first."""
    if quick:
        return [((0,), Job(name, settings, method, "8")) for method in ("muon", "lamb")]
    if name not in ADAPTIVE:
        return [((9, i, seed), Job(name, settings, m, "64", seed)) for i, m in enumerate(METHODS) for seed in range(5)]
    ranked = [((1 if seed < 3 else 6, seed), Job(name, settings, "none", "1", seed)) for seed in range(5)]
    for (rank, multiple), method, seed in product(((2, "16"), (3, "64"), (4, "4")), study.methods_of(name), range(3)):
        ranked.append(((rank, seed), Job(name, settings, method, multiple, seed)))
    if name == "text/gpt":
        ranked += [((5, seed), Job(name, settings, *cell, seed)) for cell in product(VARIANTS, ("16", "64")) for seed in range(3)]
    return ranked


def cell_of(job, *, quick):
    (cell,) = study.cells(job.name, [job.method], [job.multiple], [1.0], None, Recipe.named(job.name).replace(job.settings))
    return cell._replace(recipe=cell.recipe.replace({"budget.epochs": 1.0})) if quick else cell


def file_of(name, folder):
    return folder / f"{name.replace('/', '-')}.jsonl"


def done_in(path):
    """Identities of the runs that a file has."""
    return {_stored_identity(line) for line in readable_lines(path)} if path.exists() else set()


def is_done(job, done, *, quick):
    cell = cell_of(job, quick=quick)
    return _identity(cell.key, cell.recipe.replace({"seed": job.seed}).to_dict()) in done


def work(jobs, ended, facts, *, quick):
    """A worker: its jobs until there are none; tells of each what came of it, a line or an error."""
    torch.set_num_threads(1)
    tasks = {}
    while (job := jobs.get()) is not None:
        try:
            task = tasks.setdefault(job.name, load_task(Recipe.named(job.name).task))
            with tempfile.TemporaryDirectory() as own:
                if job.method is None:
                    search(task, Recipe.named(job.name), {f: [v] for f, v in job.settings.items()}, seeds=[job.seed], out=Path(own))
                    line = json.loads((Path(own) / "trials.jsonl").read_text())
                else:
                    cell = cell_of(job, quick=quick)
                    (line,) = run_grid(task, [cell], seeds=[job.seed], path=Path(own) / "run.jsonl", facts=facts)
            ended.put((job, line, None))
        except Exception as error:
            ended.put((job, None, f"{type(error).__name__}: {error}"[:200]))


class Schedule:
    """Which job is next: stages of the searches first, and the cells of a reference once it is tuned."""

    def __init__(self, folder, *, quick):
        self.folder, self.quick, self.ready, self.number, self.searched = folder, quick, [], itertools.count(), {}
        for name in ("digits/mlp",) if quick else (*ADAPTIVE, *OTHERS):
            self._go_on(name)

    def _trials(self, name):
        return stages.HERE / name / "trials.jsonl"

    def _push(self, rank, job):
        heapq.heappush(self.ready, (rank, next(self.number), job))

    def _go_on(self, name):
        """The next stage of a reference's search, or its cells that the study lacks."""
        lacks, best = stages.missing(name, stages.scores_in(self._trials(name))) if name in stages.STAGES else ([], {})
        self.searched[name] = len(lacks)
        for settings in lacks:
            self._push((0,), Job(name, settings, seed=stages.SEED))
        if not lacks:
            done = done_in(file_of(name, self.folder))
            for rank, job in cells_of(name, best, quick=self.quick):
                if not is_done(job, done, quick=self.quick):
                    self._push(rank, job)

    def next(self):
        """The most telling job that is ready, or None."""
        return heapq.heappop(self.ready)[-1] if self.ready else None

    def ended(self, job, line):
        """Store what came of a job; a search goes on when a stage is over."""
        path = self._trials(job.name) if job.method is None else file_of(job.name, self.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if job.method is None:
            self.searched[job.name] -= 1
            if self.searched[job.name] == 0:
                self._go_on(job.name)


def main():
    part = Part("study")
    if part.data:
        os.environ["BIGBATCH_DATA"] = str(part.data)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        if run_all(part, Schedule(Path(temporary) if part.quick else study.HERE, quick=part.quick)):
            part.finish()


def run_all(part, schedule):
    """Side by side, until all are made or the time is over; returns whether all are."""
    context = multiprocessing.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    facts = {"commit": part.facts.get("commit"), "environment": environment()}
    limit = 2 if part.quick else min(SIDE_BY_SIDE, os.cpu_count() or 1)
    given = {"target": work, "args": (jobs, results, facts), "kwargs": {"quick": part.quick}, "daemon": True}
    workers = [context.Process(**given) for _ in range(limit)]
    for worker in workers:
        worker.start()
    given_out, ended, broken = 0, 0, 0
    while part.left() > 5 and any(worker.is_alive() for worker in workers):
        while given_out - ended - broken < limit and (job := schedule.next()) is not None:
            jobs.put(job)
            given_out += 1
        if given_out == ended + broken:
            break
        try:
            job, line, error = results.get(timeout=1)
        except queue.Empty:
            continue
        if error is not None:
            broken += 1
            part.row(" ".join(map(str, job)), None, error=error)
            continue
        ended += 1
        schedule.ended(job, line)
        tell(part, job, line)
        part.row("runs made", ended, f"and {len(schedule.ready)} wait")
    whole = given_out == ended and not schedule.ready
    for worker in workers:
        worker.kill()
        worker.join()
    return whole


def tell(part, job, line):
    """A row of the part's file for each trial and each cell, with the scores of its seeds."""
    metric = metric_of(load_task(Recipe.named(job.name).task).metric)
    score = line["validation_score" if job.method is None else "test_score"]
    told = "diverged" if score is None else metric.number(metric.shown(score))
    what = f"{job.name}, {job.method}, x{job.multiple}" if job.method else f"{job.name}, search, {json.dumps(job.settings)}"
    seeds = next((dict(row["seeds"]) for row in part.rows if row["what"] == what), {}) | {str(job.seed): told}
    part.row(what, " ".join(seeds[number] for number in sorted(seeds)), metric.unit, seeds=seeds, train_s=line.get("train_s"))


if __name__ == "__main__":
    main()
