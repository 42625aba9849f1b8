"""The program as a person meets it: what it prints, one readable line for every mistake, and its exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import torch
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S
from tests.runner.scripts import SETTINGS

from bigbatch import Recipe
from bigbatch.runner.settings_file import load_settings

SMALL = ["--set", "budget.epochs=1", "--set", "batch.micro_batch=32"]


def test_help_names_every_command():
    out = bigbatch("--help").stdout
    for command in ("tasks", "train", "plan", "scale", "runs", "report", "export", "papers", "doctor", "check", "--debug"):
        assert command in out


def test_tasks():
    out = bigbatch("tasks").stdout
    for name in ("digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/resnet8", "fashion_mnist/lstm"):
        assert name in out


def test_plan_shows_and_writes(tmp_path):
    done = bigbatch("plan", "fashion_mnist/resnet8", "--global-batch", 4096, "--rule", "linear", "--out", tmp_path / "new" / "r.toml")
    for word in ("field", "before", "after", "why", "paper", "optimizer.lr", "Goyal et al. 2017", "model.zero_init_last_gamma"):
        assert word in done.stdout
    again = bigbatch("plan", tmp_path / "new" / "r.toml", "--global-batch", 8192, "--rule", "sqrt")
    assert "batch 4,096 to 8,192" in again.stdout


def test_a_plan_of_a_settings_file_is_one_and_its_command_is_checked(tmp_path):
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "mine.toml").write_text(SETTINGS)
    planned = ["plan", "mine.toml", "--global-batch", 64, "--rule", "sqrt", "--out"]
    for out in ("large.toml", "../elsewhere/large.toml"):
        bigbatch(*planned, out, cwd=tmp_path / "here")
        runner, recipe = load_settings(tmp_path / "here" / out)
        assert recipe.batch.global_batch == 64
        runner.check(recipe)
        assert runner._folder.resolve() == tmp_path / "here"
    (tmp_path / "here" / "wrong.toml").write_text(SETTINGS.replace("{num_updates}", "{num_update}"))
    refused = bigbatch("plan", "wrong.toml", "--global-batch", 64, cwd=tmp_path / "here", expect=2)
    assert "unknown field 'num_update': did you mean 'num_updates'" in refused.stderr


def test_a_recipe_file_in_the_place_of_a_task(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 0.2, "batch.micro_batch": 32})
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert "digits/mlp: test accuracy" in bigbatch("train", "r.toml", "--quiet", cwd=tmp_path).stdout
    same = [bigbatch("plan", *of, "--global-batch", 64, cwd=tmp_path).stdout for of in (["r.toml"], ["digits/mlp", "--recipe", "r.toml"])]
    assert same[0] == same[1]


def test_train_resume_and_report(tmp_path):
    train = ["train", "digits/mlp", "--global-batch", 64, "--rule", "linear", *SMALL, "--out", tmp_path / "run"]
    first = bigbatch(*train)
    assert "digits/mlp: test accuracy" in first.stdout
    assert "optimizer.lr" in first.stdout
    assert bigbatch(*train, "--resume", "--quiet").stdout.strip().splitlines()[-1].split(",")[0] in first.stdout
    assert "wrote" in bigbatch("report", tmp_path / "run").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits/mlp"],
        ["train", "digits/mlp", "--workers", 2],
        ["noise", "digits/mlp"],
        ["scale", "digits/mlp", "--to", 64, "--seeds", 2, "--max-seeds", 2],
        ["scale", "digits/mlp", "--to", 64, "--seeds", 2, "--max-seeds", 2, "--parallel", 2],
    ],
    ids=lambda arguments: "-".join(str(word) for word in arguments if word != "digits/mlp"),
)
def test_what_the_program_trains_flushes_denormal_numbers(tmp_path, arguments):
    bigbatch(*arguments, *SMALL, "--quiet", "--out", tmp_path)
    environments = [json.loads(path.read_text().splitlines()[0])["environment"] for path in tmp_path.rglob("record.jsonl")]
    assert environments
    assert {told["denormals"] for told in environments} == {"flushed" if torch.set_flush_denormal(False) else "kept"}


def test_scale_says_its_power_first_and_its_table_fits_80_columns(tmp_path):
    scale = ["scale", "digits/mlp", "--to", 64, "--rule", "linear", *SMALL, "--seeds", 2, "--max-seeds", 3, "--out", tmp_path / "runs"]
    done = bigbatch(*scale)
    first = next(line for line in done.stderr.splitlines() if "seeds an arm" in line)
    assert first.startswith("2 to 3 seeds an arm, margin 0.5 points")
    assert done.stderr.index(first) < done.stderr.index("arm 1 of 3")
    table = done.stdout[done.stdout.index("digits/mlp, ") :].splitlines()
    assert max(len(line.rstrip()) for line in table[:8]) <= 80
    assert "bad (more than 0.5 below every run of the reference)" in " ".join(done.stdout.split())


def test_papers():
    assert "LEGW" in bigbatch("papers").stdout
    one = bigbatch("papers", "legw").stdout
    assert "eta_k = sqrt(k) eta" in one
    assert "https://arxiv.org/abs/1901.08256" in one


def test_what_is_listed_and_planned_as_json(tmp_path):
    tasks = json.loads(bigbatch("tasks", "--json", "-").stdout)["tasks"]
    assert {task["task"]: task["optimizer"]["lr"] for task in tasks}["digits/mlp"] == 0.1
    (paper,) = json.loads(bigbatch("papers", "legw", "--json", "-").stdout)["papers"]
    assert (paper["module"], paper["arxiv"], paper["year"]) == ("bigbatch.scaling.rules.legw", "1901.08256", 2019)
    assert len(json.loads(bigbatch("papers", "--json", "-").stdout)["papers"]) > 50
    done = bigbatch("plan", "digits/mlp", "--global-batch", 64, "--rule", "linear", "--json", "-", "--out", "r.toml", cwd=tmp_path)
    stored = json.loads(done.stdout)
    assert done.stderr == "wrote r.toml\n"
    assert [(c["before"], c["after"]) for c in stored["changes"] if c["field"] == "optimizer.lr"] == [(0.1, 0.2)]
    assert Recipe.from_dict(stored["recipe"]) == Recipe.load(tmp_path / "r.toml")
    assert Recipe.from_dict(stored["reference"]) == Recipe.named("digits/mlp")


@pytest.mark.parametrize(
    "command", [["tasks"], ["papers"], ["papers", "legw"], ["plan", "digits/mlp", "--global-batch", "64"]], ids=" ".join
)
def test_json_in_a_file_comes_beside_what_is_printed(tmp_path, command):
    done = bigbatch(*command, "--json", "new/all.json", cwd=tmp_path)
    assert done.stdout == bigbatch(*command, cwd=tmp_path).stdout + "wrote new/all.json\n"
    assert json.loads((tmp_path / "new" / "all.json").read_text()) == json.loads(bigbatch(*command, "--json", "-").stdout)


def test_divergence_has_its_own_exit_code(tmp_path):
    done = bigbatch("train", "digits/mlp", *SMALL, "--set", "optimizer.lr=1e9", "--quiet", "--out", tmp_path / "run", expect=3)
    assert done.stderr.startswith("diverged: loss = ")
    assert (tmp_path / "run" / "record.jsonl").exists()


MISTAKES = {
    "unknown task": (["train", "fashion_mnist/mpl"], "unknown task 'fashion_mnist/mpl': did you mean"),
    "unknown task to scale": (["scale", "nothing", "--to", "64"], "unknown task 'nothing'"),
    "own task without recipe": (["train", "own:Task"], "has no shipped recipe; give yours with --recipe FILE"),
    "a mistyped file": (["plan", "mine.tml", "--global-batch", "64"], "mine.tml: is no file that is here, and no task; `bigbatch tasks`"),
    "unknown rule": (["plan", "digits/mlp", "--global-batch", "64", "--rule", "cubic"], "unknown rule 'cubic'"),
    "unknown field": (["train", "digits/mlp", "--set", "optimizer.larning_rate=1"], "unknown field 'optimizer.larning_rate'"),
    "malformed setting": (["train", "digits/mlp", "--set", "optimizer.lr"], "--set optimizer.lr: must be FIELD=VALUE"),
    "batch too large": (["plan", "digits/mlp", "--global-batch", "2000"], "is larger than the training set of 1,297 samples"),
    "zero batch": (["plan", "digits/mlp", "--global-batch", "0"], "global_batch = 0: must be a finite number above zero"),
    "negative batch": (["scale", "digits/mlp", "--to", "-5"], "global_batch = -5: must be a finite number above zero"),
    "zero seeds": (["scale", "digits/mlp", "--to", "64", "--seeds", "0"], "seeds = 0: must be a finite number above zero"),
    "fewer at most than at first": (
        ["scale", "digits/mlp", "--to", "64", "--seeds", "3", "--max-seeds", "2"],
        "max_seeds = 2: must be seeds = 3 or more",
    ),
    "a share of bad runs of one": (["scale", "digits/mlp", "--to", "64", "--bad-share", "1"], "bad_share = 1.0: must lie between 0 and 1"),
    "negative rate": (["train", "digits/mlp", "--set", "optimizer.lr=-1"], "optimizer.lr = -1: input should be greater than 0"),
    "negative epochs": (["train", "digits/mlp", "--set", "budget.epochs=-1"], "budget.epochs = -1: input should be greater than 0"),
    "missing recipe file": (["train", "digits/mlp", "--recipe", "absent.toml"], "recipe absent.toml: can't be read"),
    "not writable": (["train", "digits/mlp", "--out", "/proc/run"], "output folder /proc/run"),
    "missing data": (["train", "fashion_mnist/mlp", "--data", "nowhere"], "train-images-idx3-ubyte.gz not found; tried nowhere"),
    "nothing to resume": (["train", "digits/mlp", "--out", "nowhere", "--resume"], "holds no run to resume"),
    "nothing to report": (["report", "."], "holds no run and no study, nor does a folder below it"),
    "a name too long for --out": (["train", "digits/mlp", "--out", "x" * 300], "x: File name too long; choose a folder"),
    "a name too long to report": (["report", "x" * 300], "x: File name too long; check the path"),
    "a name too long to plan": (["plan", "x" * 300, "--global-batch", "64"], "x: File name too long; check the path"),
    "a name too long for --data": (["train", "fashion_mnist/mlp", "--data", "x" * 300], "gz: File name too long; check --data"),
    "a name too long for a study": (
        ["scale", "digits/mlp", "--to", "64", "--quiet", "--out", "x" * 300],
        "x: File name too long; choose a",
    ),
    "a name too long for curvature": (["curvature", "x" * 300], "x: File name too long; check the path"),
    "a folder as a recipe": (["train", "digits/mlp", "--recipe", "/"], "recipe /: can't be read: Is a directory; check the path"),
    "a number of 5,000 digits": (["train", "digits/mlp", "--set", "seed=" + "9" * 5000], "exceeded maximum size"),
    "a number of 20 digits": (["train", "digits/mlp", "--set", "seed=" + "9" * 20], "should be less than 9223372036854775808"),
    "5,000 brackets": (["train", "digits/mlp", "--set", "seed=" + "[" * 5000], "unable to parse string as an integer"),
    "unknown paper": (["papers", "lagw"], "unknown method 'lagw': did you mean 'legw'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_readable_line_and_exit_code_2(tmp_path, arguments, message):
    done = bigbatch(*arguments, cwd=tmp_path, expect=2)
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    for arguments in (["--debug", "train", "nothing"], ["train", "nothing", "--debug"]):
        assert "Traceback" in bigbatch(*arguments, expect=1).stderr


def test_a_bug_in_a_task_is_one_line_too(tmp_path):
    (tmp_path / "bad.py").write_text(
        "from bigbatch.tasks.digits_mlp import DigitsMLP\nclass T(DigitsMLP):\n  def model(self):\n    return 1/0\n"
    )
    (tmp_path / "r.toml").write_text(bigbatch_recipe())
    done = bigbatch("train", "bad:T", "--recipe", "r.toml", cwd=tmp_path, expect=1)
    assert done.stderr.startswith("unexpected ZeroDivisionError: division by zero; this is a bug in bigbatch or in the task: --debug")
    assert len(done.stderr.splitlines()) == 1


def bigbatch_recipe():
    from bigbatch import Recipe

    return Recipe.named("digits/mlp").to_toml()


def test_what_keeps_a_resume_from_equal_bits_is_one_line(tmp_path):
    train = ["train", "digits/mlp", "--set", "budget.epochs=1", "--set", "batch.micro_batch=32", "--out", tmp_path / "run", "--quiet"]
    assert bigbatch(*train).stderr == ""
    (tmp_path / "run" / "result.json").unlink()
    (line,) = bigbatch(*train, "--resume", MKL_CBWR="COMPATIBLE").stderr.splitlines()
    assert line.startswith(
        f"warning: checkpoint {tmp_path / 'run' / 'last.pt'}: continues to rounding, not bit for bit (MKL_CBWR: COMPATIBLE"
    )


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    command = ["train", "digits/mlp", "--set", "budget.epochs=300", "--set", "batch.micro_batch=32", "--out", "run", "--quiet"]
    program = [sys.executable, "-m", "bigbatch", *command]
    running = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + LIMIT_S
    record = tmp_path / "run" / "record.jsonl"
    while time.monotonic() < deadline and not (record.exists() and record.read_text().count('"update"') > 5):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    assert err.startswith("interrupted: stopped after update ")
    assert "continue with the same command and --resume" in err


def test_a_bar_on_a_terminal(tmp_path):
    """On a pseudo-terminal: a moving bar with rate, loss and accuracy, and no plain lines."""
    parent, child = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "150"}
    command = [sys.executable, "-m", "bigbatch", "train", "digits/mlp", "--set", "budget.epochs=120", "--set", "batch.micro_batch=32"]
    running = subprocess.Popen(command, stdout=child, stderr=child, env=environment, cwd=tmp_path)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert running.wait(timeout=LIMIT_S) == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "━" in text
    assert "samples/s" in text
    assert "accuracy" in text
    assert "s left" not in text
