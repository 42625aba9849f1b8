"""`bigbatch runs` as a person meets it."""

import csv
import io
import json

import pytest
from tests.cli.command import bigbatch

from bigbatch import Recipe, fit

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 3, "batch.micro_batch": 32, "model.hidden": 8})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "all"
    for name, lr in (("sweep/low", 0.01), ("sweep/high", 0.3)):
        fit("digits/mlp", RECIPE.replace({"optimizer.lr": lr}), out=root / name, quiet=True, tensorboard=False)
    (root / "broken[red]").mkdir()
    (root / "broken[red]" / "result.json").write_text("{")
    (root / "broken[red]" / "recipe.toml").write_text(RECIPE.to_toml())
    return root


def rows(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_a_table_and_what_is_damaged(folder):
    done = bigbatch("runs", folder)
    assert [[row[0], row[1], row[-1]] for row in rows(done.stdout)] == [
        ["broken[red]", "0.1", "damaged"],
        ["sweep/high", "0.3", "finished"],
        ["sweep/low", "0.01", "finished"],
    ]
    assert "3 runs, 2 finished, 1 damaged" in " ".join(done.stdout.split())
    header = next(line for line in done.stdout.splitlines() if line.startswith("┃"))
    assert [cell.strip() for cell in header.split("┃")[1:-1]] == ["run", "lr", "accuracy, %", "updates", "seconds", "state"]
    assert "broken[red]: " in done.stdout
    assert "result.json: is damaged: not JSON" in " ".join(done.stdout.split())
    assert done.stderr == ""


def test_sorted(folder):
    assert [row[0] for row in rows(bigbatch("runs", folder / "sweep", "--sort", "lr").stdout)] == ["low", "high"]
    assert [row[0] for row in rows(bigbatch("runs", folder / "sweep", "--sort", "-lr").stdout)] == ["high", "low"]


def test_json_and_csv_to_files_and_to_standard_output(folder, tmp_path):
    done = bigbatch("runs", folder, "--sort", "-lr", "--json", "new/runs.json", "--csv", "new/runs.csv", cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == ["wrote new/runs.json", "wrote new/runs.csv"]
    stored = json.loads((tmp_path / "new" / "runs.json").read_text())
    assert [(run["run"], run["fields"]["optimizer.lr"]) for run in stored["runs"]] == [
        ("sweep/high", 0.3),
        ("broken[red]", 0.1),
        ("sweep/low", 0.01),
    ]
    assert json.loads(bigbatch("runs", folder, "--sort", "-lr", "--json", "-").stdout) == stored
    lines = list(csv.DictReader(io.StringIO((tmp_path / "new" / "runs.csv").read_text())))
    assert [line["state"] for line in lines] == ["finished", "damaged", "finished"]
    assert list(csv.DictReader(io.StringIO(bigbatch("runs", folder, "--sort", "-lr", "--csv", "-").stdout))) == lines


def test_no_runs_are_an_empty_table(tmp_path):
    assert ".: 0 runs" in bigbatch("runs", ".", cwd=tmp_path).stdout
    assert json.loads(bigbatch("runs", tmp_path, "--json", "-").stdout)["runs"] == []


MISTAKES = {
    "no folder": (["nowhere"], "nowhere: is not a folder; give one with runs in it"),
    "unknown column": ([".", "--sort", "loss"], "--sort loss: unknown column 'loss': "),
    "both to one place": ([".", "--json", "-", "--csv", "-"], "--json - --csv -: one would overwrite the other"),
    "not writable": ([".", "--json", "/proc/x/y"], "output folder /proc/x"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_readable_line(tmp_path, arguments, message):
    done = bigbatch("runs", *arguments, cwd=tmp_path, expect=2)
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
