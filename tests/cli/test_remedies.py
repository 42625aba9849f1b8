"""What is printed as a remedy, or as the way to go on, is done here as it is printed."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S
from typer.main import get_command

from bigbatch import Recipe
from bigbatch.cli.app import app

SOURCE = Path(__file__).parents[2] / "src" / "bigbatch"
LONG, SHORT = (["--set", f"budget.epochs={epochs}", "--set", "batch.micro_batch=32"] for epochs in (120, 1))


BETWEEN = "interrupted (SIGINT): nothing more was saved"
"""Between two runs, of which the first is kept."""


def interrupted(command, folder, wanted):
    """Ctrl-C as soon as a record has some updates; what is said last."""
    program = [sys.executable, "-m", "bigbatch", *map(str, command)]
    running = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and running.poll() is None and not wanted():
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130, err
    return err.splitlines()[-1]


STOPPED = {
    "train": (["train", "digits/mlp", *LONG, "--out", "run"], "run/record.jsonl"),
    "noise": (["noise", "digits/mlp", *LONG, "--out", "run"], "run/record.jsonl"),
    "scale": (
        ["scale", "digits/mlp", "--to", 64, "--rule", "sqrt", *LONG, "--seeds", 1, "--max-seeds", 1, "--out", "study"],
        "study/reference/seed-0/record.jsonl",
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_ctrl_c_says_goes_on(tmp_path, name):
    command, record = STOPPED[name]
    path = tmp_path / record
    said = interrupted([*command, "--quiet"], tmp_path, lambda: path.exists() and path.read_text().count('"update"') > 20)
    assert "the same command" in said
    resume = ["--resume"] if "--resume" in said else []
    assert bool(resume) == (name == "train")
    assert path.with_name("last.pt").exists()  # from which it goes on
    bigbatch(*command, *resume, "--quiet", cwd=tmp_path)


def test_what_ctrl_c_says_goes_on_with_critical(tmp_path):
    command = ["critical", "digits/mlp", "--batches", "16,64,256", "--target", "0.9", "--out", "study", *LONG[2:]]
    finished = tmp_path / "study" / "runs.jsonl"
    said = interrupted(command, tmp_path, finished.exists)
    assert said.endswith(("finished runs are kept, and the same command goes on with this one", BETWEEN))
    assert "found finished" in bigbatch(*command, cwd=tmp_path).stderr


def test_what_ctrl_c_says_goes_on_with_branches(tmp_path):
    bigbatch("train", "digits/mlp", *LONG, "--keep-checkpoints", "--out", "run", "--quiet", cwd=tmp_path)
    command = ["critical", "--branch", "run", "--out", "study", "--samples", "4000", "--multiples", "1,4"]
    finished = tmp_path / "study" / "branches.jsonl"
    said = interrupted(command, tmp_path, finished.exists)
    assert said.endswith(("finished branches are kept, and the same command goes on with this one", BETWEEN))
    lines = finished.read_text().splitlines()
    bigbatch(*command, "--quiet", cwd=tmp_path)
    assert finished.read_text().splitlines()[: len(lines)] == lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, in `run`."""
    from bigbatch import fit

    folder = tmp_path_factory.mktemp("remedies")
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})
    fit("digits/mlp", recipe, out=folder / "run", quiet=True)
    (folder / "mine.py").write_text("from bigbatch.tasks.digits_mlp import DigitsMLP\nclass Task(DigitsMLP):\n    name = 'mine:Task'\n")
    (folder / "r.toml").write_text(recipe.to_toml())
    (folder / "w.safetensors").write_text("")
    (folder / "broken.toml").write_text("task = ")
    return folder


TRAIN = ["train", "digits/mlp", *SHORT]
LINK = ["simulate", "--workers", "8", "--model-bytes", "1MB", "--step", "9ms"]
MENDED = {
    "no recipe": (["train", "mine:Task"], "give yours with --recipe FILE", ["train", "mine:Task", "--recipe", "r.toml"]),
    "a used folder": ([*TRAIN, "--out", "run"], "continue it with --resume", [*TRAIN, "--out", "run", "--resume"]),
    "another folder": ([*TRAIN, "--out", "run"], "or choose another --out", [*TRAIN, "--out", "another"]),
    "nothing to resume": ([*TRAIN, "--out", "new", "--resume"], "start the run without --resume", [*TRAIN, "--out", "new"]),
    "a run without noise": (
        ["noise", "digits/mlp", *SHORT, "--out", "run"],
        "give another --out, or remove it",
        ["noise", "digits/mlp", *SHORT, "--out", "noise"],
    ),
    "no checkpoints": (
        ["critical", "--branch", "run", "--samples", "600", "--multiples", "1,4"],
        "train it with --keep-checkpoints",
        [*TRAIN, "--keep-checkpoints", "--out", "with-checkpoints"],
    ),
    "a file to export to": (["export", "run", "w.safetensors"], "", ["export", "run", "w.safetensors", "--force"]),
    "no link": (LINK, "give --bandwidth and --latency, such as 50Gbit and 50us", [*LINK, "--bandwidth", "50Gbit", "--latency", "50us"]),
    "a folder for JSON": (["papers", "legw", "--json", "run"], "such as run/all.json", ["papers", "legw", "--json", "run/all.json"]),
    "a broken recipe": (["plan", "broken.toml", "--global-batch", "64"], "`bigbatch init` writes one", ["init", "digits/mlp"]),
    "no terminal": (["init", "--out", "b.toml"], "WHAT: is missing", ["init", "digits/mlp", "--out", "b.toml"]),
    "no batch to plan for": (
        ["plan", "digits/mlp"],
        "--global-batch and --batch-schedule: give one of the two",
        ["plan", "digits/mlp", "--global-batch", "64"],
    ),
    "a plan without a batch": (
        [*TRAIN, "--set", "plan.optimizer.lr=1"],
        "there is no plan without --global-batch",
        [*TRAIN, "--set", "plan.optimizer.lr=0.1", "--global-batch", "64", "--rule", "sqrt"],
    ),
}


@pytest.mark.parametrize(("wrong", "remedy", "right"), MENDED.values(), ids=MENDED)
def test_a_remedy_works(folder, wrong, remedy, right):
    assert remedy in bigbatch(*wrong, cwd=folder, expect=2).stderr
    bigbatch(*right, cwd=folder)


def test_what_warnings_say_to_try(folder):
    """Each alternative of "try --set a=b or --global-batch 81"."""
    plan = ["plan", "digits/mlp", "--global-batch", "512", "--rule", "sqrt"]
    tried = re.search(r"warning: only .* try (--set \S+) or (--global-batch \S+)", bigbatch(*plan).stdout)
    for words in tried.groups():
        option, value = words.split()
        command = [word for i, word in enumerate(plan) if not (option == "--global-batch" and i in (2, 3))]
        assert "warning: only" not in bigbatch(*command, option, value).stdout


def test_what_a_plan_says_to_read_and_to_add():
    shown = bigbatch("plan", "digits/mlp", "--global-batch", "64").stdout
    for command in set(re.findall(r"`bigbatch (papers \w+)`", shown)):
        assert "Formula:" in bigbatch(*command.split()).stdout
    assert "add --groups" in shown
    assert "1.weight" in bigbatch("plan", "digits/mlp", "--global-batch", "64", "--groups").stdout


def test_what_an_undecided_comparison_says_to_try(tmp_path):
    scale = [
        "scale",
        "digits/mlp",
        "--to",
        64,
        "--rule",
        "linear",
        *SHORT,
        "--quiet",
        "--seeds",
        1,
        "--margin",
        20,
        "--out",
        tmp_path / "study",
    ]
    said = " ".join(bigbatch(*scale, "--max-seeds", 2).stdout.split())
    most, share = re.search(r"--max-seeds (\d+), or --bad-share ([\d.]+) to let", said).groups()
    between = re.search(r"a batch between, such as --to (\d+)", said)[1]
    assert '"held" needs' not in bigbatch(*scale, "--max-seeds", 2, "--bad-share", share).stdout
    assert '"held" needs' not in bigbatch(*scale, "--max-seeds", most).stdout
    bigbatch(*scale[:3], between, *scale[4:], "--max-seeds", 1)


OPTIONS = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in get_command(app).commands.items()}
OF_OTHERS = {"--nproc-per-node", "--nnodes", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint", "--ntasks-per-node", "--map-by"}
OF_OTHERS |= {"--batch-size", "--host", "--debug", "--help", "--version"}
"""Options of torchrun, Slurm and MPI, of scripts in examples, and of the program itself; and the beginning of some."""


def texts():
    """Strings of the package that are no docstrings; what is filled in is `{}`."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield path, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
                yield path, node.value


def test_every_command_and_option_that_is_named_exists():
    known, wrong = set().union(*OPTIONS.values()) | OF_OTHERS, []
    for path, text in texts():
        wrong += [(path.name, option) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", text) if option not in known]
        for command, rest in re.findall(r"\bbigbatch ([a-z]+)\b([^`;,.)]*)", text):
            if command in OPTIONS:
                wrong += [(path.name, command, o) for o in re.findall(r"--[a-z][a-z-]*\w", rest) if o not in OPTIONS[command]]
    assert wrong == []
