import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

from bigbatch import Recipe, fit
from bigbatch.core.checks import UserError
from bigbatch.core.extras import MissingExtra
from bigbatch.integrations import mirror
from bigbatch.integrations.follow import tracked
from bigbatch.integrations.mirror import RunMirror
from bigbatch.integrations.tracker import Place, check_tracker

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1})
PLOTS = {f"by_{axis}/{name}" for axis in ("updates", "samples") for name in ("train/loss", "train/lr", "validation/score", "test/score")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where trackers write, without a network."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    return tmp_path


def mlflow_runs(place):
    """All runs, by their names: read by MLflow itself, in a process of its own."""
    code = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
told = {}
for run in client.search_runs([client.get_experiment_by_name("bigbatch").experiment_id]):
    id, data = run.info.run_id, run.data
    metrics = {name: [(m.step, m.value) for m in client.get_metric_history(id, name)] for name in data.metrics}
    told[run.info.run_name] = {"id": id, "status": run.info.status, "params": data.params, "tags": data.tags, "metrics": metrics,
                               "files": [file.path for file in client.list_artifacts(id)]}
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def wandb_runs(folder):
    from tests.integrations.wandb_files import told

    return {t[0].display_name: t for t in map(told, sorted(folder.rglob("wandb/offline-run-*/run-*.wandb")))}


def lines_of(folder, kind):
    return [line for line in map(json.loads, (folder / "record.jsonl").read_text().splitlines()) if line["kind"] == kind]


def command(*arguments, folder):
    program = [sys.executable, "-m", "bigbatch", *arguments]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_mlflow_shows_a_run(place):
    done = command("train", "digits/mlp", "--set", "budget.epochs=1", "--out", "one", "--track", "mlflow", "--quiet", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = mlflow_runs(place).values()
    updates = lines_of(place / "one", "update")
    assert run["status"] == "FINISHED"
    assert {name: run["params"][name] for name in RECIPE.to_flat_dict()} == {k: str(v) for k, v in RECIPE.to_flat_dict().items()}
    assert run["metrics"].keys() >= PLOTS
    assert run["metrics"]["by_updates/train/loss"] == [[line["update"], line["loss"]] for line in updates]
    assert run["metrics"]["by_samples/train/lr"] == [[line["samples"], line["lr"]] for line in updates]
    result = json.loads((place / "one" / "result.json").read_text())
    assert run["metrics"]["test_score"] == [[0, result["test_score"]]]
    assert set(run["files"]) == {"recipe.toml", "result.json"}


def test_wandb_shows_a_run_offline(place):
    done = command("train", "digits/mlp", "--set", "budget.epochs=1", "--out", "one", "--track", "wandb", "--quiet", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    (told,) = wandb_runs(place).values()
    run, config, rows, summary, artifacts = told
    assert run.project == "bigbatch"
    assert {name: config[name] for name in RECIPE.to_flat_dict()} == RECIPE.to_flat_dict()
    updates = lines_of(place / "one", "update")
    trained = [row for row in rows if "by_updates/train/loss" in row]
    assert [(row["updates"], row["samples"], row["by_samples/train/loss"]) for row in trained] == [
        (line["update"], line["samples"], line["loss"]) for line in updates
    ]
    assert set().union(*rows) >= PLOTS
    assert summary["test_score"] == json.loads((place / "one" / "result.json").read_text())["test_score"]
    assert {name.partition("-")[2] for name in artifacts} == {"recipe.toml", "result.json"}


@pytest.mark.slow
def test_a_study_is_a_parent_with_the_verdict_and_a_child_for_each_run(place):
    how = ["--to", "512", "--set", "budget.epochs=1", "--seeds", "2", "--max-seeds", "2", "--out", "study", "--quiet"]
    for tracker in ("mlflow", "wandb"):  # the second finds all runs finished
        done = command("scale", "digits/mlp", *how, "--track", tracker, folder=place)
        assert done.returncode == 0, done.stderr
    comparison = json.loads((place / "study" / "batch-512-muon.comparison.json").read_text())
    arms = comparison["arms"][1:]
    children = {f"{arm} seed-{seed}" for arm in ("reference", "batch-512-only", "batch-512-muon") for seed in (0, 1)}

    runs = mlflow_runs(place)
    (parent,) = (run for name, run in runs.items() if name.endswith("/study"))
    assert {name for name, run in runs.items() if run["tags"].get("mlflow.parentRunId") == parent["id"]} == children
    assert all(parent["tags"][f"bigbatch.{arm['name']} at 512"] == arm["sentence"] for arm in arms)
    assert all(parent["tags"][f"bigbatch.outcome of {arm['name']} at 512"] == arm["outcome"] for arm in arms)
    assert set(parent["files"]) == {"batch-512-muon.comparison.json", "report.html"}
    assert all(run["status"] == "FINISHED" for run in runs.values())

    told = wandb_runs(place / "study")
    (name,) = told.keys() - children
    assert told.keys() == children | {name}
    assert {run.run_group for run, *_ in told.values()} == {name}
    summary = told[name][3]
    assert summary["advice at 512"] == comparison["advice"]
    assert all(summary[f"outcome of {arm['name']} at 512"] == arm["outcome"] for arm in arms)


@pytest.mark.slow
def test_a_killed_run_is_shown_as_such_and_goes_on_in_the_same_run(place):
    train = [
        "train",
        "digits/mlp",
        "--set",
        "budget.epochs=60",
        "--out",
        str(place / "one"),
        "--track",
        "mlflow",
        "--quiet",
        "--save-every",
        "0.1",
    ]
    process = subprocess.Popen([sys.executable, "-m", "bigbatch", *train], cwd=place)
    state, record, end = place / "one" / "tracking-mlflow.json", place / "one" / "record.jsonl", time.monotonic() + LIMIT_S
    while not (record.exists() and record.read_text().count("\n") > 100):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # a fast machine is done before the tracker has looked
    while not (state.exists() and json.loads(state.read_text())["sent"].get("update", 0) > 50):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while followers(place / "one"):
        assert time.monotonic() < end
        time.sleep(0.1)
    (run,) = mlflow_runs(place).values()
    assert run["status"] == "KILLED"
    done = command(*train, "--resume", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    (same,) = mlflow_runs(place).values()
    assert (same["id"], same["status"]) == (run["id"], "FINISHED")
    stride = -(-RECIPE.replace({"budget.epochs": 60}).num_updates // 1000)
    expected = [[u["update"], u["loss"]] for u in lines_of(place / "one", "update") if u["update"] % stride == 0 or u["update"] == 1]
    assert same["metrics"]["by_updates/train/loss"] == expected


def followers(folder):
    """Processes that follow a folder."""
    texts = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    mine = [text for text in texts if b"bigbatch.integrations.follow" in text]
    return [text for text in mine if str(folder).encode() in text.split(b"\0")]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("fails", "warning", "line"),
    [
        ("raise OSError(28, 'No space left')", None, "warning: MLflow: [Errno 28] No space left; the run goes on without it\n"),
        ("import time; time.sleep(1000)", "MLflow: was not done within 1 s", ""),
        ("import os; os._exit(9)", "MLflow: its process ended with exit code 9", ""),
    ],
)
def test_a_tracker_that_fails_changes_nothing_but_one_line(fails, warning, line, place, monkeypatch, capfd):
    (place / "broken").mkdir()
    (place / "broken" / "mlflow.py").write_text(fails)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place / "broken"), os.environ["PYTHONPATH"]]))
    fit("digits/mlp", RECIPE, out=place / "alone", quiet=True)
    warned = pytest.warns(UserWarning, match=warning) if warning else nullcontext()
    with warned, tracked("mlflow", place / "one", wait_s=1 if "sleep" in fails else 99):
        fit("digits/mlp", RECIPE, out=place / "one", quiet=True)
    assert capfd.readouterr().err == line
    assert lines_of(place / "one", "update") == lines_of(place / "alone", "update")
    assert not followers(place / "one")


class Told:
    """A tracker that remembers."""

    def __init__(self, place):
        self.id, self.place, self.rows, self.ended = place.id or "an id", place, [], None

    def log(self, values, *, updates, samples):
        self.rows.append((updates, samples, values))

    def end(self, outcome):
        self.ended = outcome

    def flush(self):
        pass

    parameters = summary = artefact = lambda self, *_: None


def update(number):
    return {"kind": "update", "update": number, "samples": 32 * number, "loss": 1 / number, "lr": 0.1, "global_batch": 32}


def test_a_record_is_followed_line_by_line_and_cut_back(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(mirror, "begin", lambda _, place: runs.append(Told(place)) or runs[-1])
    start = {"kind": "start", "recipe": RECIPE.to_dict(), "task": "digits/mlp"}
    record, follower = tmp_path / "record.jsonl", RunMirror("mlflow", Place("one", tmp_path))
    follower.look()  # nothing yet
    whole = [json.dumps(line) + "\n" for line in (start, *map(update, range(1, 7)))]
    record.write_text("".join(whole[:3]) + whole[3][:20])
    follower.look()
    assert [row[:2] for row in runs[0].rows] == [(1, 32), (2, 64)]
    record.write_text("".join(whole[:4]))
    follower.look()
    (tmp_path / "new").write_text("".join(whole[:2]))  # a resumed run cuts what came after its checkpoint, and makes it again
    (tmp_path / "new").replace(record)
    follower.look()
    record.write_text("".join(whole) + json.dumps({"kind": "diverged", "update": 7, "samples": 224, "loss": "nan"}) + "\n")
    follower.look()
    assert [row[0] for row in runs[0].rows] == [1, 2, 3, 4, 5, 6]
    assert runs[0].ended == "failed"
    later = RunMirror("mlflow", Place("one", tmp_path))
    later.look()
    later.end()
    assert len(runs) == 1  # nothing new
    record.write_text("".join(whole) + json.dumps(update(7)) + "\n")
    later.look()
    later.end()
    assert runs[1].place.id == "an id"
    assert [row[0] for row in runs[1].rows] == [7]
    assert runs[1].ended == "stopped"


def test_a_noise_scale_is_a_ratio_of_means(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(mirror, "begin", lambda _, place: runs.append(Told(place)) or runs[-1])
    noise = [{"kind": "noise", "update": n, "samples": n, "signal_and_noise": {"all": [n, 8.0 * n**2]}} for n in (1, 3)]
    lines = [{"kind": "start", "recipe": RECIPE.to_dict()}, *noise]
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    RunMirror("wandb", Place("one", tmp_path)).look()
    assert [row[2] for row in runs[0].rows] == [{"train/noise_scale": 8.0}, {"train/noise_scale": 20.0}]


def test_what_can_t_be_tracked_is_said_before_anything_is_trained(place, monkeypatch):
    done = command("train", "digits/mlp", "--track", "paper", "--out", "one", folder=place)
    assert (done.returncode, done.stderr) == (2, "error: unknown tracker 'paper': known: mlflow, wandb, trackio\n")
    with pytest.raises(UserError, match="give it a folder with --out"), tracked("mlflow", None):
        raise AssertionError("not reached")
    monkeypatch.setitem(check_tracker.__globals__, "find_spec", lambda name: None)  # the module that is tested, whichever import made it
    with pytest.raises(MissingExtra, match="a run on trackio needs trackio, which is not installed: pip install trackio"):
        check_tracker("trackio")


TRACKIO = """
import json

def init(project, *, name, group, config, resume, embed):
    note(init=[project, name, group, config])
    return Run()

def note(**what):
    with open("trackio.jsonl", "a") as file:
        file.write(json.dumps(what) + chr(10))

class Run:
    def log(self, values, step=None):
        note(log=values, step=step)

    def finish(self):
        note(finish=True)
"""
"""What of trackio is called; the package itself brings a web server."""


def test_trackio_is_told_of_a_run(place, monkeypatch):
    (place / "stand-in").mkdir()
    (place / "stand-in" / "trackio.py").write_text(TRACKIO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place / "stand-in"), os.environ["PYTHONPATH"]]))
    done = command("train", "digits/mlp", "--set", "budget.epochs=1", "--out", "one", "--track", "trackio", "--quiet", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    begun, *logged, last = [json.loads(line) for line in (place / "trackio.jsonl").read_text().splitlines()]
    assert begun["init"][0] == "bigbatch"
    assert begun["init"][3]["optimizer.lr"] == 0.1
    assert last == {"finish": True}
    losses = [(line["step"], line["log"]["by_updates/train/loss"]) for line in logged if "by_updates/train/loss" in line["log"]]
    assert losses == [(line["update"], line["loss"]) for line in lines_of(place / "one", "update")]
