"""`bigbatch init`: what it writes is accepted by the commands that it names."""

import json
import os
import pty
import shlex
import subprocess
import sys

import pytest
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S
from tests.runner.scripts import RUN, write_script

from bigbatch.core.storage.reading import parse_toml
from bigbatch.recipe import Recipe
from bigbatch.recipe.starter import Answers, starter

RECIPE = ["--samples", 1280, "--epochs", 2, "--batch", 32, "--optimizer", "sgd", "--lr", 0.1]
METRIC = ["--metric", "accuracy,%,higher,0.5"]
SCORE = ["--score", "test_acc ([0-9.]+)"]
FUNCTION = """
def train(recipe, run):
    run.log(updates=recipe.num_updates, loss=0.1)
    run.score(95 + 0.01 * recipe.seed)
"""
TASK = """
from bigbatch.tasks.digits_mlp import DigitsMLP
class Digits(DigitsMLP):
    name = "mine:Digits"
"""
CASES = {
    "a command": [RUN, *RECIPE, *METRIC, *SCORE],
    "a function": ["mine:train", *RECIPE, *METRIC],
    "a task": ["mine:Digits", "--samples", 1297, "--epochs", 0.2, "--batch", 32, "--optimizer", "sgd", "--lr", 0.1],
    "a shipped task": ["digits/mlp"],
}


@pytest.fixture
def folder(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTION + TASK)
    return tmp_path


@pytest.mark.parametrize("answers", CASES.values(), ids=CASES)
def test_the_commands_that_it_names_accept_what_it_writes(folder, answers):
    done = bigbatch("init", *answers, "--out", "my settings.toml", "--json", "-", cwd=folder)
    told = json.loads(done.stdout)
    text = (folder / "my settings.toml").read_text()
    assert [command.split()[:2] for command in told["commands"]] == [["bigbatch", "plan"], ["bigbatch", "scale"]]
    for command in told["commands"]:
        assert f"#     {command}\n" in text
        few = ["--seeds", 2, "--max-seeds", 2, "--quiet"] if " scale " in command else []  # or fourteen
        few += ["--set", "budget.epochs=0.2"] if few and answers[0] == "digits/mlp" else []
        assert bigbatch(*shlex.split(command)[1:], *few, cwd=folder).stdout


def test_what_stands_in_comments_is_accepted_too(folder):
    bigbatch("init", *CASES["a command"], "--out", "all.toml", cwd=folder)
    lines = (folder / "all.toml").read_text().splitlines()
    assert sum(line.startswith("# ") for line in lines) > 5
    text = "\n".join(line.removeprefix("# ") if " = " in line else line for line in lines)
    fields = parse_toml(text)
    assert set(fields.pop("command")) == {"run", "score", "metric", "curve"}
    recipe = Recipe.from_dict(fields)
    assert (recipe.optimizer.weight_decay, recipe.schedule.decay.kind, recipe.schedule.warmup.epochs) == (5e-4, "cosine", 0.5)
    (folder / "all.toml").write_text(text)
    assert "field" in bigbatch("plan", "all.toml", "--global-batch", 64, "--rule", "sqrt", cwd=folder).stdout


def answer(folder, *answers):
    """Type answers on a terminal; what was shown."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "bigbatch", "init"]
    running = subprocess.Popen(command, cwd=folder, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(parent, "".join(f"{text}\n" for text in answers).encode())
    shown = b""
    try:
        while part := os.read(parent, 4096):
            shown += part
    except OSError:  # Linux, at the end
        pass
    os.close(parent)
    assert running.wait(LIMIT_S) == 0, shown
    return shown.decode()


def test_five_questions(folder):
    shown = answer(folder, RUN, "1280", "2", "32", "sgd", "0.1", "accuracy,%,higher,0.5", "test_acc ([0-9.]+)")
    for number in range(1, 6):
        assert f"{number}/5" in shown
    asked = (folder / "bigbatch.toml").read_text()
    bigbatch("init", *CASES["a command"], "--force", cwd=folder)
    assert asked == (folder / "bigbatch.toml").read_text()


def test_one_question_for_a_shipped_task(folder):
    shown = answer(folder, "digits/mlp")
    assert "2/5" not in shown
    assert Recipe.load(folder / "bigbatch.toml") == Recipe.named("digits/mlp")


MISTAKES = {
    "nobody to ask": ([], "WHAT: is missing, and there is no terminal to ask at; give it"),
    "nobody to ask for the rate": (["mine:train", *RECIPE[:-2]], "--lr: is missing, and there is no terminal"),
    "no place for the rate": (["python train.py", *RECIPE, *METRIC, *SCORE], "has no {optimizer.lr}, which a larger batch changes"),
    "a malformed metric": (["mine:train", *RECIPE, "--metric", "accuracy"], "must be NAME,UNIT,higher|lower,MARGIN"),
    "a metric without a side": (["mine:train", *RECIPE, "--metric", "accuracy,%,up,1"], "--metric accuracy,%,up,1: "),
    "a pattern without a group": ([RUN, *RECIPE, *METRIC, "--score", "acc"], "has no group around the number, such as ([0-9.]+)"),
    "no pattern": ([RUN, *RECIPE, *METRIC, "--score", "("], "is no regular expression"),
    "an unknown optimizer": (["mine:train", *RECIPE, "--optimizer", "sgdd", *METRIC], "sgdd"),
}


@pytest.mark.parametrize(("answers", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, answers, message):
    done = bigbatch("init", *answers, cwd=tmp_path, expect=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_replaced_unless_asked(folder):
    bigbatch("init", "digits/mlp", cwd=folder)
    done = bigbatch("init", "mine:train", *RECIPE, *METRIC, cwd=folder, expect=2)
    assert done.stderr == "error: bigbatch.toml: exists; replace it with --force, or choose another --out\n"
    bigbatch("init", "mine:train", *RECIPE, *METRIC, "--force", cwd=folder)


@pytest.mark.parametrize("command", ["python train.py \\\n", "python 't.py' \\d\t", 'python t.py "a b"', "python 't.py' \"b\" \x1b"])
def test_what_it_writes_reads_back_to_the_last_digit(tmp_path, command):
    text, _ = starter(
        Answers(
            what=command + " --lr {optimizer.lr} --batch {batch.global_batch}",
            samples=5000,
            epochs=12.3456789,
            batch=32,
            optimizer="muon",
            lr=0.00012345678,
            metric="accuracy,%,higher,0.123456789",
            score='acc "([0-9.]+)',
        ),
        "mine.toml",
    )
    (tmp_path / "mine.toml").write_text(text)
    told, recipe = parse_toml(text), Recipe.load(tmp_path / "mine.toml")
    assert told["command"]["run"].startswith(command)
    assert told["command"]["metric"]["margin"] == 0.123456789
    assert (recipe.optimizer.lr, recipe.optimizer.adam_lr, recipe.budget.epochs) == (0.00012345678, 0.00012345678, 12.3456789)


def test_an_optimizer_that_is_none_is_asked_for_again(folder):
    answers = [RUN, "1280", "2", "32", "adam w", "sgd", "0.1", "accuracy,%,higher,0.5", "test_acc ([0-9.]+)"]
    assert answer(folder, *answers).count("4/5") == 2
    assert Recipe.load(folder / "bigbatch.toml").optimizer.name == "sgd"
