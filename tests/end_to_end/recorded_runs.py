"""Short runs of everything that the trainer can do, and what each of them ends in, bit for bit: test_recorded_runs.py compares.

    python tests/end_to_end/recorded_runs.py --record      write recorded_runs.json anew: the numbers are meant to have changed
    python tests/end_to_end/recorded_runs.py --add         add the runs that it does not hold yet, and this machine's bits of all, if the
                                                           numbers of those that it holds are equal to rounding; tolerances of these stay

It knows bigbatch by its public names only (`fit`, `Recipe`, `Interrupted`, the program, the files of a run), so the same file runs
before and after a change of the inside. For each run the JSON file has values that hold anywhere to rounding (losses, rates, batches,
weights), and for each platform on which it was recorded SHA-256 digests of the weights, the optimizer's state and the record. A platform
is what last bits depend on; both commands record the instruction sets that torch can be held to here, and measure how far environments
are apart. A run that was added later has no digests of platforms that were not at hand: there it is compared to rounding.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import math
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve()
JSON = FILE.with_suffix(".json")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
if __name__ == "__main__":  # libraries read it when they are imported
    for thread_variable, number in ONE_THREAD.items():
        os.environ.setdefault(thread_variable, number)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset, TensorDataset  # noqa: E402

import bigbatch  # noqa: E402

LIMIT_S = 500
"""Seconds that the processes of a group may take."""
MULTIPLE = {"float64": 1000.0, "float32": 1000.0, "float16": 30.0, "bfloat16": 30.0}
"""Values on other platforms may be so many times as far apart as the environments were in which they were recorded."""
LEAST = {"float64": 1e-14, "float32": 1e-7, "float16": 1e-4, "bfloat16": 1e-3}
"""How far apart environments are taken to be at least, as those that were tried may have been lucky; in parts of a value's size."""
MOST = {"float64": 1e-9, "float32": 1e-2, "float16": 1e-2, "bfloat16": 0.1}
"""Runs whose tolerance is larger say too little."""

# --- Task ---------------------------------------------------------------------------------------------------------------------------


class Splits(NamedTuple):
    train: Dataset
    validation: Dataset
    test: Dataset


class LastState(nn.Module):
    """Of an LSTM over the rows of images."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, images):
        return self.head(self.lstm(images.squeeze(1))[0][:, -1])


class OneByOne(Dataset):
    """Samples that a data loader puts together."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, i):
        return self.tensors[i]


class Images:
    """scikit-learn's digits as images, for a perceptron, and for models with convolutions, batch norm, dropout and memory.

    Data and initial weights are the same bits on any platform, which torch's own initial weights are not.
    """

    name, metric = "recorded/images", "accuracy"

    def __init__(self, loaded=False):
        self.kind = OneByOne if loaded else lambda tensors: tensors

    def splits(self):
        images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        images = images.float().reshape(-1, 1, 8, 8) / 16
        parts = [slice(0, 1297), slice(1297, 1497), slice(1497, 1797)]
        return Splits(*(self.kind(TensorDataset(images[part], labels[part].long())) for part in parts))

    def model(self, *, kind="plain", dropout=0.0):
        if kind == "lstm":
            model = LastState()
        elif kind == "plain":
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))
        else:
            first, second = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, padding=1, bias=False)
            layers = [first, nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), second, nn.BatchNorm2d(8), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, 10))
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.data = torch.randint(-1024, 1025, p.shape).float() / 2.0 ** round(9 + math.log2(p[0].numel()) / 2)
            elif "bias" in name:
                nn.init.zeros_(p)
        return model

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs, targets):
        return (outputs.argmax(1) == targets).float()


class Stopped(Images):
    """As by Ctrl-C, in the middle of a run: after so many forward passes of training."""

    def __init__(self, passes):
        super().__init__()
        self.passes = passes

    def losses(self, outputs, targets):
        if outputs.requires_grad:
            self.passes -= 1
            if self.passes == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(outputs, targets)


# --- Runs ---------------------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One that is recorded.

    Attributes:
        changes: To the recipe that all have in common, by dotted fields.
        normed: Whether it is of a model with batch norm.
        shipped: Whether it is of the task digits/mlp; else of `Images`.
        options: Of `fit`.
        workers: How many processes.
        servers: Of a parameter server's run, besides.
        loaded: Whether its data are read one by one.
        repeats: Whether it ends in the same bits each time; else rates, batches and counts are compared, and nothing that was computed.
        program: Whether `bigbatch train --workers` starts it.
        stopped_after: Forward passes of the first worker after which it is stopped, to be resumed.
    """

    changes: dict[str, Any] = {}  # noqa: RUF012
    normed: bool = False
    shipped: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012
    workers: int = 1
    servers: int = 0
    loaded: bool = False
    program: bool = False
    repeats: bool = True
    stopped_after: int | None = None

    @property
    def recipe(self):
        return bigbatch.Recipe.from_dict(BASE).replace(
            {**(SHIPPED if self.shipped else {}), **(NORMED if self.normed else {}), **self.changes}
        )

    @property
    def precision(self):
        """Of the coarsest rounding."""
        return "float16" if self.recipe.get("comm.compression.kind") == "fp16" else self.recipe.precision

    @property
    def group(self):
        """Runs of a group share their processes."""
        if self.program:
            return "the program"
        if self.servers:
            return "parameter servers"
        return "alone" if self.workers == 1 else f"{self.workers} workers"


BASE = {
    "task": "recorded/images",
    "num_train_samples": 1297,
    "seed": 7,
    "precision": "float64",
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch": {"global_batch": 64, "micro_batch": 32},
    "budget": {"updates": 30},
}
SHIPPED = {"task": "digits/mlp", "model.hidden": 32, "precision": "float32"}
NORMED = {"model.kind": "normed", "batch.ghost_batch": 16, "budget.updates": 20, "optimizer.lr": 0.05}


def optimizer(name, **settings):
    return {"optimizer": {"name": name, **settings}}


def schedule(warmup=None, decay=None, **rest):
    return {"schedule": {"warmup": warmup or {"kind": "none"}, "decay": decay or {"kind": "constant"}, **rest}}


def ruled(kind, **settings):
    return {"batch.rule": {"kind": kind, **settings}, "batch.micro_batch": 8}


def gossip(method, topology):
    return {"comm": {"kind": "gossip", "method": method, "topology": topology}}


GRADUAL = {"kind": "gradual", "epochs": 0.5}
AUTOWU = {"kind": "autowu", "grow_from": 1e-3, "tests": 20, "patience": 2}
HALVED = {"kind": "step", "milestones": [0.4, 0.8], "factor": 0.5}
ADVERSARIAL = {"adversarial": {"eps": 0.05, "tau": 1, "full_until": 0.3, "off_at": 0.8}}
MIXED = {"batch.micro_batch": 16, "model.dropout": 0.2, "augmentation": {"padding": 1}, "budget.updates": 30}
SHIFTED = {"augmentation": {"padding": 1, "flip": True}, "model.dropout": 0.2}
MEASURED_OFTEN = {"every_updates": 5, "largest": 256}
ABSA = {"every_epochs": 0.2, "patience_epochs": 0.4, "drop": 1.5, "samples": 128, "tolerance": 1e-3, "share": 0.25, "eps": 0.05}
LOCAL = {"comm": {"kind": "local_sgd", "period": 3, "start_updates": 4}, "model.dropout": 0.2}
DILOCO = {"comm": {"kind": "diloco", "period": 4, "outer_lr": 0.7, "outer_momentum": 0.6}}
MUON = optimizer("muon", lr=0.02, adam_lr=2e-3)

RUNS: dict[str, Run] = {
    # every optimizer, every schedule
    "sgd": Run(
        {**optimizer("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=0.5), **schedule(GRADUAL, {"kind": "cosine"})}
    ),
    "adam": Run({**optimizer("adam", lr=0.01), **schedule({"kind": "constant", "epochs": 0.3, "factor": 0.25}, HALVED)}),
    "adamw": Run({**optimizer("adamw", lr=0.01, weight_decay=0.1, decay_norms_and_biases=False), **schedule(GRADUAL, {"kind": "wsd"})}),
    "lars": Run({**optimizer("lars", lr=8.0), **schedule(GRADUAL, {"kind": "polynomial"}, combine="product")}, shipped=True),
    "lamb": Run({**optimizer("lamb", lr=0.01, weight_decay=0.01), **schedule(decay={"kind": "linear"})}),
    "adamp": Run({**optimizer("adamp", lr=0.01, weight_decay=0.01)}),
    "sgdp": Run({**optimizer("sgdp", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)}),
    "muon": Run({**optimizer("muon", lr=0.02, adam_lr=2e-3, weight_decay=0.01)}),
    "soap_muon": Run({**optimizer("soap_muon", lr=0.02, adam_lr=2e-3, weight_decay=0.01, beta2=0.8)}),
    "autowu": Run({**schedule(AUTOWU), **optimizer("sgd", lr=2.0), "budget.updates": 60}),
    "autowu, back to the minimum": Run(
        {**schedule({**AUTOWU, "return_to_minimum": True}), **optimizer("sgd", lr=2.0, momentum=0.5), "budget.updates": 60}
    ),
    # every rule of the batch
    "increase_batch": Run({**ruled("increase_batch", largest=256), **schedule(GRADUAL, HALVED)}),
    "adabatch": Run({**ruled("adabatch", every_epochs=0.5, largest=256)}),
    "seesaw": Run({**ruled("seesaw", largest=256), **optimizer("adam", lr=0.01), **schedule(GRADUAL, {"kind": "cosine"})}),
    "schedule": Run({**ruled("schedule", steps=[[300, 96], [1000, 160]]), **optimizer("adam", lr=0.01)}),
    "ramp": Run({**ruled("ramp", over_samples=1000, largest=200, lr="linear"), **schedule(GRADUAL, HALVED)}),
    "late": Run({**ruled("late", after=0.5, largest=192), **optimizer("adamw", lr=0.01, weight_decay=0.1)}),
    "noise_scale": Run({**ruled("noise_scale", exchange_rate=500.0, **MEASURED_OFTEN)}),
    "norm_test": Run({**ruled("norm_test", theta=0.4, **MEASURED_OFTEN)}),
    "inner_product_test": Run({**ruled("inner_product_test", theta=0.3, nu=0.5, **MEASURED_OFTEN)}),
    "cabs": Run({**ruled("cabs", smallest=16, **MEASURED_OFTEN)}),
    "simigrad": Run({**ruled("simigrad", target=0.7, **MEASURED_OFTEN)}),
    "divebatch": Run({**ruled("divebatch", delta=2.0, largest=256), "budget.updates": 60}),
    "goodput": Run({**ruled("goodput", alpha_s=0.1, beta_s_per_sample=1e-4, **MEASURED_OFTEN)}),
    "absa": Run({**ruled("absa", largest=256, **ABSA)}),
    "adascale": Run({**ruled("adascale", base_batch=16), "budget": {"epochs": 1}}),
    # what else is trained on, and measured
    "adversarial": Run({**ADVERSARIAL, **schedule(GRADUAL)}, normed=True),
    "ghost batch norm": Run({**SHIFTED, "optimizer.clip_norm": 1.0}, normed=True, options={"keep_checkpoints": True}),
    "multiplicative noise": Run({"batch.noise_batch": 16, **optimizer("adam", lr=0.01)}),
    "measured": Run(
        {"curvature": {"every_updates": 10, "eigenvalues": 2, "samples": 128, "trace": 0.2}, "batch.micro_batch": 16},
        options={"measure_noise": "layers", "measure_distance": True, "evaluate_every": 0.5},
    ),
    "data loader": Run(normed=True, options={"evaluate_every": 0.25}, loaded=True),
    "lstm": Run({"model.kind": "lstm", "precision": "bfloat16", "optimizer.lr": 0.5}),
    # stopped and resumed: the same bits as those without a stop
    "norm_test of images": Run({**ruled("norm_test", theta=0.3, **MEASURED_OFTEN), **MIXED}, normed=True),
    "norm_test of images, resumed": Run({**ruled("norm_test", theta=0.3, **MEASURED_OFTEN), **MIXED}, normed=True, stopped_after=60),
    "adversarial, resumed": Run({**ADVERSARIAL, **schedule(GRADUAL)}, normed=True, stopped_after=20),
    # several workers
    "all_reduce": Run({"batch.global_batch": 56, "batch.ghost_batch": 8, "batch.micro_batch": 16}, normed=True, workers=2),
    "all_reduce, norm_test": Run({**ruled("norm_test", theta=0.4, **MEASURED_OFTEN)}, workers=2),
    "all_reduce, absa": Run({**ruled("absa", largest=256, **ABSA), "batch.micro_batch": 16}, normed=True, workers=2),
    "all_reduce, autowu": Run(
        {**schedule({**AUTOWU, "return_to_minimum": True}), **optimizer("sgd", lr=1.0), "budget.updates": 60}, workers=2
    ),
    "all_reduce, muon": Run({**optimizer("muon", lr=0.02, adam_lr=2e-3)}, workers=2),
    "fp16": Run({"comm.compression": {"kind": "fp16"}}, workers=2, shipped=True),
    "powersgd": Run({"comm.compression": {"kind": "powersgd", "rank": 2, "start_updates": 5}}, workers=2),
    "top_k": Run({"comm.compression": {"kind": "top_k", "share": 0.1}}, workers=2),
    "int8": Run({"comm.compression": {"kind": "int8", "block": 64}}, workers=2),
    "int4": Run({"comm.compression": {"kind": "int4", "block": 64}}, workers=2),
    "sparse_loco": Run({"comm.compression": {"kind": "sparse_loco", "chunk": 256, "top": 16}}, workers=2),
    "local_sgd": Run(LOCAL, workers=2),
    "local_sgd, resumed": Run(LOCAL, workers=2, stopped_after=10),
    "local_sgd, norm_test": Run(
        {**ruled("norm_test", theta=0.5, **MEASURED_OFTEN), "comm": {"kind": "local_sgd", "period": 3, "momentum": "reset"}}, workers=2
    ),
    "local_sgd, period warm-up": Run({"comm": {"kind": "local_sgd", "period": 4, "period_warmup": 12}}, workers=2),
    "diloco": Run(DILOCO, workers=2),
    "diloco, resumed": Run(DILOCO, workers=2, stopped_after=10),
    "diloco, 4 bits": Run({"comm": {**DILOCO["comm"], "compression": {"kind": "int4", "block": 64}}, **MUON}, workers=2),
    "muloco": Run({"comm": {"kind": "muloco", "period": 4}, **MUON}, workers=2),
    "diloco, alone": Run(DILOCO),
    "diloco in groups": Run({"comm": {**DILOCO["comm"], "group_size": 2, "nesterov": False}}, workers=4),
    "streaming_diloco": Run({"comm": {"kind": "streaming_diloco", "period": 6, "fragments": 2, "overlap": 2}}, normed=True, workers=2),
    "noloco": Run({"comm": {"kind": "noloco", "period": 4, "pull": 0.5}, **MUON}, workers=4),
    "fully_shard, muon and adascale": Run(
        {
            "comm": {"kind": "fully_shard"},
            **optimizer("muon", lr=0.02, adam_lr=2e-3),
            **ruled("adascale", base_batch=32),
            "budget": {"epochs": 1},
        },
        workers=2,
    ),
    "fully_shard": Run({"comm": {"kind": "fully_shard"}, **optimizer("adamw", lr=0.01), "optimizer.clip_norm": 0.5}, workers=2),
    "adversarial, made by ranks": Run({**ADVERSARIAL, "adversarial.makers": "ranks"}, normed=True, workers=2),
    "local_sgd in groups": Run(
        {"comm": {"kind": "local_sgd", "period": 4, "momentum": "keep", "group_size": 2, "group_period": 2}}, normed=True, workers=4
    ),
    "d_psgd": Run({**gossip("d_psgd", "ring"), "comm.label_skew": 0.5}, normed=True, workers=4),
    "dmsgd": Run({**gossip("dmsgd", "one_peer_exponential")}, workers=4),
    "decentlam": Run({**gossip("decentlam", "symmetric_exponential")}, workers=4),
    "parameter_server": Run(
        {"comm": {"kind": "parameter_server", "servers": 2, "gradients_per_update": 4}, "optimizer.weight_decay": 1e-3},
        normed=True,
        workers=2,
        servers=2,
    ),
    "parameter_server, asynchronous": Run(
        {"comm": {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 2}, **schedule(GRADUAL)},
        servers=1,
        repeats=False,
    ),
    "bigbatch train --workers": Run({**schedule(GRADUAL, {"kind": "linear"})}, workers=2, shipped=True, program=True),
}
ALONE = [name for name, run in RUNS.items() if run.group == "alone"]
TOGETHER = (("2 workers",), ("4 workers", "parameter servers", "the program"))
"""Groups whose processes are forked from one that has imported torch."""


def run_alone(name, folder):
    """What a run of one process ended in."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        train(RUNS[name], folder)
    finally:
        torch.set_num_threads(threads)
    return outcome(RUNS[name], folder)


def train(run, folder):
    """A worker's part in a run."""
    task = "digits/mlp" if run.shipped else Images(run.loaded)
    options = {"quiet": True, "tensorboard": False, "evaluate_every": 0.5, **run.options}
    seldom = {"save_every_s": 1e6}  # with several workers, running statistics are added up to be saved, which rounds
    if run.stopped_after is not None:
        first = os.environ.get("RANK", "0") == "0"
        try:  # saved after each update: so workers agree after each whether one was asked to stop
            bigbatch.fit(Stopped(run.stopped_after) if first else task, run.recipe, out=folder, save_every_s=0, **options)
        except bigbatch.Interrupted:
            options["resume"] = True
        else:
            raise AssertionError("was not stopped")
        if first:
            (folder / "stopped").write_text(str(len(lines_of(folder, "update"))))
    bigbatch.fit(task, run.recipe, out=folder, **seldom, **options)


# --- Several processes --------------------------------------------------------------------------------------------------------------


def run_together(groups, folder):
    """What the runs of groups ended in, by their names, and what was said; in processes of their own, of which none is left.

    Those that did not end well are left out, and what was said tells why.
    """
    command = [sys.executable, "-W", "ignore", str(FILE), "--together", str(folder), *groups]
    environment = {**ONE_THREAD, **os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        end, over = time.monotonic() + LIMIT_S, False
        try:
            while not over and time.monotonic() < end:
                time.sleep(0.05)
                over = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # before it is waited for, so that the number is still its own
            process.wait()
    said = (folder / "said.txt").read_text()[-8000:] + ("" if over else f"\ndid not end within {LIMIT_S} s")
    found = folder / "found.json"
    return json.loads(found.read_text()) if found.exists() else {}, said


def names_of(*groups):
    return [name for name, run in RUNS.items() if run.group in groups]


def work_together(groups, folder):
    """All of some groups, in the process that `run_together` starts."""
    importlib.import_module("torch._dynamo")  # which optimizers want; once, before there are several
    bigbatch.fit  # noqa: B018 likewise
    folders = {name: folder / str(number) for number, name in enumerate(names_of(*groups))}
    for group in groups:
        begin = time.monotonic()
        try:
            work_as_group(group, {name: folders[name] for name in names_of(group)}, folder)
        except Failed as error:
            say(f"{group}: {error}")
        say(f"{group}: {time.monotonic() - begin:.1f} s")
    found = {}
    for name, out in folders.items():  # after all forks: it computes
        try:
            if (out / "result.json").exists():
                found[name] = outcome(RUNS[name], out)
        except Exception:
            say(f"{name}: {traceback.format_exc()}")
    (folder / "found.json").write_text(json.dumps(found))


class Failed(Exception):
    """A process did."""


def work_as_group(group, folders, folder):
    if group == "the program":
        for name, out in folders.items():
            out.mkdir()
            (out / "asked.toml").write_text(RUNS[name].recipe.to_toml())
            command = f"train {RUNS[name].recipe.task} --workers {RUNS[name].workers} --quiet --save-every 1e6".split()
            fork([({}, partial(program, *command, "--recipe", out / "asked.toml", "--out", out))])
    elif group == "parameter servers":
        for name, out in folders.items():
            run = RUNS[name]
            addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(run.servers))
            shared = {"BIGBATCH_SERVERS": addresses, "BIGBATCH_TOKEN": "recorded", "BIGBATCH_NUM_WORKERS": str(run.workers)}
            roles = [f"server:{i}" for i in range(run.servers)] + [f"worker:{i}" for i in range(run.workers)]
            fork([({**shared, "BIGBATCH_ROLE": role}, partial(train, run, out)) for role in roles])
    else:
        world = RUNS[next(iter(folders))].workers
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        work = partial(work_as_rank, folders, folder / f"store-{world}")
        fork([({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, work) for rank in range(world)])


def work_as_rank(folders, store):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for name, out in folders.items():
        if rank == 0:
            say(f"{name}: begins")
        train(RUNS[name], out)


def fork(parts):
    """Processes, each with an environment and a function; the first that fails ends all."""
    children, left = [], set()
    try:
        for environment, work in parts:
            if (pid := os.fork()) == 0:
                os.environ |= environment
                be_child(work)
            children.append(pid)
            left.add(pid)
        while left:
            pid, status = os.wait()
            left.discard(pid)
            if status:
                raise Failed(f"a process of {len(children)} ended with {os.waitstatus_to_exitcode(status)}")
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def be_child(work):
    """Never returns: gloo's threads may still want Python's lock when Python is gone."""
    code = 1
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_ports(number):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in with_ports]
    for s in with_ports:
        s.close()
    return ports


def program(*arguments):
    """`bigbatch` with these arguments, in this process."""
    before, sys.argv = sys.argv, ["bigbatch", *map(str, arguments)]
    try:
        runpy.run_module("bigbatch", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"bigbatch {arguments[0]}: exit code {end.code}") from end
    finally:
        sys.argv = before


# --- What a run ended in ------------------------------------------------------------------------------------------------------------

TOLD = {  # kinds of lines of a record, and which of their fields are no times and no words
    "update": ("update", "samples", "loss", "lr", "global_batch"),
    "batch": ("update", "samples", "before", "after"),
    "noise": ("update", "samples", "signal_and_noise"),
    "curvature": ("update", "samples", "eigenvalues", "trace", "global_batch", "adversarial_share"),
    "switch": ("update", "samples", "minimum", "factor", "weights_of"),
    "weight_distance": ("update", "samples", "distance"),
    "staleness": ("update", "samples", "histogram"),
    "evaluation": ("split", "update", "samples", "loss", "score", "num_samples", "distance", "sent_bytes"),
}


def outcome(run, folder):
    """Values, to compare to rounding, and digests, to compare bit for bit."""
    state = torch.load(folder / "last.pt", weights_only=True)
    if not run.repeats:
        return outcome_of_order(run, folder)
    weights = state["model"]
    if state.get("shards"):
        file = folder / "weights.safetensors"
        program("export", folder, file)
        weights = load_file(file)
    told = {kind: [{f: line[f] for f in fields if f in line} for line in lines_of(folder, kind)] for kind, fields in TOLD.items()}
    updates = told["update"]
    assert len(updates) > 1, "a run of no updates"
    values = {
        "losses": [line["loss"] for line in updates],
        "rates": [line["lr"] for line in updates],
        "batches": [line["global_batch"] for line in updates],
        "weights": {name: [size(w), *samples_of(w)] for name, w in weights.items()},
        "last": {kind: list(numbers_in(lines[-1])) for kind, lines in told.items() if lines and kind not in ("update", "batch")},
        "counts": {kind: len(lines) for kind, lines in told.items()},
    }
    digests = {"weights": digest(weights), "record": digest(told)}
    if not state.get("shards"):
        digests["optimizer"] = digest(state["optimizer"]["state"])
    return {"values": values, "digests": digests, "precision": run.precision}


def outcome_of_order(run, folder):
    """Of a run in which the speed of processes decides what is computed."""
    updates = lines_of(folder, "update")
    values = {"losses": [], "rates": [line["lr"] for line in updates], "batches": [line["global_batch"] for line in updates]}
    values |= {"weights": {}, "last": {}, "counts": {"update": len(updates)}}
    told = [{field: line[field] for field in TOLD["update"] if field != "loss"} for line in updates]
    return {"values": values, "digests": {"record": digest(told)}, "precision": run.precision}


def lines_of(folder, kind):
    lines = (json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def size(tensor):
    """Root of the mean square."""
    return tensor.double().square().mean().sqrt().item()


def samples_of(tensor):
    flat = tensor.double().flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(4, len(flat))).long()].tolist()


COUNTED = ("update", "samples", "num_samples")


def numbers_in(value):
    """Those that are measured, not counted, and so much smaller."""
    if isinstance(value, Mapping):
        value = [part for name, part in value.items() if name not in COUNTED]
    elif isinstance(value, bool | int | float):
        yield float(value)
        return
    elif isinstance(value, str) or value is None:
        return
    for part in value:
        yield from numbers_in(part)


def digest(value):
    """SHA-256 of tensors, numbers and words in dicts and lists, whatever the order of a dict's keys."""
    sha = hashlib.sha256()

    def add(value):
        if isinstance(value, Mapping):
            sha.update(b"{")
            for key in sorted(value, key=str):
                sha.update(f"{key}:".encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            sha.update(b"[")
            for part in value:
                add(part)
        elif isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(f"{value!r},".encode())

    add(value)
    return sha.hexdigest()


# --- Platforms ----------------------------------------------------------------------------------------------------------------------

SETTINGS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
WIDE = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")


def this_platform():
    """What the last bits of these runs depend on; JSON values."""
    facts = processor()
    return {
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "libc": " ".join(platform.libc_ver()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": ", ".join(f"{name} {facts[name]}" for name in ("model name", "cpu family", "model") if name in facts)
        or platform.machine(),
        "flags": sorted(set(facts.get("flags", facts.get("Features", "")).split()) & set(WIDE)),
        "num_threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


# --- Comparison ---------------------------------------------------------------------------------------------------------------------


def apart(values, recorded):
    """The largest difference of two runs' values, in parts of their sizes; infinite where what can't be rounded differs."""
    exact = all(values[part] == recorded[part] for part in ("batches", "counts"))
    if not exact or any(values[part].keys() != recorded[part].keys() for part in ("weights", "last")):
        return math.inf
    pairs = [(values[name], recorded[name]) for name in ("losses", "rates")]
    pairs += [(values[part][name], recorded[part][name]) for part in ("weights", "last") for name in recorded[part]]
    if any(len(mine) != len(theirs) for mine, theirs in pairs):
        return math.inf
    return max(max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / (largest(theirs) or 1.0) for mine, theirs in pairs if theirs)


def largest(values):
    return max(map(abs, values))


def tolerance(entry):
    return MULTIPLE[entry["precision"]] * max(entry["apart"], LEAST[entry["precision"]])


def difference(name, found, recorded, here):
    """What of a run is not as recorded, in words, or nothing: any bit on a recorded platform, more than rounding on others."""
    entry = recorded["runs"].get(name)
    if entry is None:
        return f"{name}: is not in {JSON.name}; record it"
    distance, allowed = apart(found["values"], entry["values"]), tolerance(entry)
    number = str(recorded["platforms"].index(here)) if here in recorded["platforms"] else None
    if number in entry["digests"]:
        digests = entry["digests"][number]
        other = [part for part in digests.keys() | found["digests"].keys() if digests.get(part) != found["digests"].get(part)]
        return f"{name}: {', '.join(sorted(other))}: other bits than recorded; values are apart by {distance:.1e}" if other else ""
    return f"{name}: values are apart by {distance:.1e} on a platform that was not recorded, {allowed:.1e} allowed" * (distance > allowed)


def held(recorded, found):
    """What a file holds, with the runs that it does not hold yet, as they were found; the others as they are, in the order of `RUNS`.

    Raises:
        SystemExit: If the file holds a run that there is no more, or numbers of one that it holds have changed.
    """
    if gone := recorded["runs"].keys() - RUNS.keys():
        raise SystemExit(f"nothing written: no such runs any more: {', '.join(sorted(gone))}; record all anew")
    nowhere = {**recorded, "platforms": []}
    if wrong := [text for name in recorded["runs"] if (text := difference(name, found[name], nowhere, None))]:
        raise SystemExit("nothing written: the numbers have changed\n" + "\n".join(wrong))
    return {**recorded, "runs": {name: recorded["runs"].get(name) or unplaced(found[name]) for name in RUNS}}


def unplaced(found):
    """An entry of a run that is recorded for no platform yet."""
    return {**found, "apart": 0.0, "digests": {}}


# --- Recording ----------------------------------------------------------------------------------------------------------------------

CAPABILITIES = {"default": "", "avx2": "avx2", "avx512": "avx512f"}
ELSEWHERE = [
    {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
]
"""Environments of which only the distance is taken."""


def run_all(to):
    """All runs in this environment, into a file."""
    found, begin = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, name in enumerate(ALONE):
            found[name] = run_alone(name, Path(folder, str(number)))
        for number, groups in enumerate(TOGETHER):
            (several := Path(folder, f"several-{number}")).mkdir()
            of_several, said = run_together(groups, several)
            if missing := set(names_of(*groups)) - set(of_several):
                raise SystemExit(f"{said}\ndid not end well: {', '.join(missing)}")
            found |= of_several
    told = os.times()
    cpu_s = round(told.user + told.system + told.children_user + told.children_system, 1)
    to.write_text(json.dumps({"platform": this_platform(), "runs": found, "cpu_s": cpu_s, "seconds": round(time.monotonic() - begin, 1)}))


def in_environment(settings):
    """`run_all` in a process with these settings and no others that matter."""
    cleared = {*SETTINGS, *ONE_THREAD, "ATEN_CPU_CAPABILITY"}
    environment = {name: value for name, value in os.environ.items() if name not in cleared} | ONE_THREAD | settings
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "runs.json"
        subprocess.run([sys.executable, str(FILE), "--run-all", str(to)], env=environment, check=True)
        found = json.loads(to.read_text())
    print(f"{settings}: {found['platform']['cpu_capability']}, {found['cpu_s']:.0f} CPU s, {found['seconds']:.0f} s", flush=True)
    return found


def record(anew):
    flags = processor().get("flags", "").split()
    able = [name for name, flag in CAPABILITIES.items() if not flag or flag in flags]
    here = [in_environment({"ATEN_CPU_CAPABILITY": name}) for name in able]
    again = in_environment({})
    for one in here:
        if one["platform"] == again["platform"]:
            other = [name for name in RUNS if one["runs"][name]["digests"] != again["runs"][name]["digests"]]
            if other:
                raise SystemExit(f"nothing written: other bits the second time: {', '.join(other)}")
    for name, run in RUNS.items():
        if run.stopped_after is not None:
            for one in here:
                straight, resumed = (one["runs"][n]["digests"] for n in (name.removesuffix(", resumed"), name))
                if straight != resumed:
                    raise SystemExit(f"nothing written: {name}: other bits than without a stop")
    if anew:
        recorded = {"platforms": [], "runs": {name: unplaced(again["runs"][name]) for name in RUNS}}
    else:
        recorded = held(json.loads(JSON.read_text()), again["runs"])
    new = [name for name, entry in recorded["runs"].items() if not entry["digests"]]
    for one in here:
        add_digests(recorded, one)
    for one in itertools.chain(here, [again], map(in_environment, ELSEWHERE)):
        for name, entry in recorded["runs"].items():
            distance = apart(one["runs"][name]["values"], entry["values"])
            if name in new:
                entry["apart"] = max(entry["apart"], distance)
            elif distance > tolerance(entry):
                print(f"{name}: apart by {distance:.1e} in an environment of this machine, {tolerance(entry):.1e} allowed")
        write(recorded)
    for name, entry in recorded["runs"].items():
        if tolerance(entry) > MOST[entry["precision"]]:
            print(f"{name}: environments are apart by {entry['apart']:.1e}: a decision may have flipped; choose another run")


def add_digests(recorded, one):
    """Of one platform's runs, where there are none yet: a test looks after the others."""
    if one["platform"] not in recorded["platforms"]:
        recorded["platforms"].append(one["platform"])
    number = str(recorded["platforms"].index(one["platform"]))
    for name, entry in recorded["runs"].items():
        entry["digests"].setdefault(number, one["runs"][name]["digests"])


def write(recorded):
    """A line a list, so that differences can be read."""
    runs = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(key)}: {one_line_each(value, 4)}" for key, value in entry.items())
        + "\n  }"
        for name, entry in recorded["runs"].items()
    )
    platforms = ",\n".join(f"  {json.dumps(one)}" for one in recorded["platforms"])
    JSON.write_text(f'{{\n "platforms": [\n{platforms}\n ],\n "runs": {{\n{runs}\n }}\n}}\n')


def one_line_each(value, indent):
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    lines = [f"{' ' * indent}{json.dumps(key)}: {one_line_each(part, indent + 1)}" for key, part in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * (indent - 1) + "}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--record", action="store_true", help="write the values and this machine's bits anew")
    asked.add_argument("--add", action="store_true", help="add this machine's bits to values that hold, and new runs")
    asked.add_argument("--run-all", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    asked.add_argument("--together", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.together:
        folder, *groups = given.together
        work_together(groups, Path(folder))
    elif given.run_all:
        run_all(given.run_all)
    else:
        record(anew=given.record)


if __name__ == "__main__":
    main()
