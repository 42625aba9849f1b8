"""Studies by branches: of a run of a task, of a function, of a command; what is said beforehand; what is repeated; what is refused."""

import json
import math
import sys

import pytest
from torch.utils.data import TensorDataset

from bigbatch import Metric, Recipe, fit
from bigbatch.core.checks import CheckpointError, Interrupted, UserError
from bigbatch.runner.command import CommandRunner
from bigbatch.runner.function import FunctionRunner
from bigbatch.runner.protocol import Request
from bigbatch.study.branches.base_runs import ScriptRun, TaskRun
from bigbatch.study.branches.branches import branches
from bigbatch.tasks import load_task
from bigbatch.train.branch import Branch, BranchResult

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 6, "batch.micro_batch": 16, "batch.global_batch": 16})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    fit("digits/mlp", RECIPE, out=out, keep_checkpoints=True, measure_test=False, quiet=True, tensorboard=False)
    return out


class Curve:
    """A run whose branches end as the formula says, but for a shift of each window."""

    name, identity, global_batch, total_samples, tolerance, num_held_out, notes = "curve", "1", 64, 1_000_000, 0.01, 0, ()

    def __init__(self, critical_batch=500.0, diverges_from=math.inf, best_factor=1.0):
        self.critical_batch, self.diverges_from, self.best_factor = critical_batch, diverges_from, best_factor
        self.made = []

    def checkpoints(self):
        return {1000 * i: 64_000 * i for i in range(1, 16)}

    def start_loss(self, updates, held_out):
        return 2.0

    def branch(self, updates, branch):
        self.made.append((updates, branch))
        batch = branch.multiple * self.global_batch
        if batch >= self.diverges_from:
            return BranchResult(math.nan, 1, branch.samples, 0.1, diverged=True)
        off = abs(math.log(branch.rate_factor / branch.multiple**0.5 / self.best_factor))
        gain = 0.1 * (branch.samples / 20_000 / (1 + batch / self.critical_batch)) ** 0.5 - 0.01 * off
        return BranchResult(2.0 - gain * (1 + 0.01 * branch.order), branch.samples // batch, branch.samples, 0.1)


def test_branches_of_a_task_end_in_an_estimate_at_each_checkpoint(run, tmp_path):
    told = []
    study = branches(run, at=[82, 163, 244], multiples=(1, 4, 16), samples=1024, windows=2, out=tmp_path, say=told.append)
    assert told[0] == "8 branches of 1,024 samples, each evaluated on 200, at each checkpoint: 99 % of the run's cost"
    assert "interval of a critical batch amid the multiples" in told[3]
    assert [point.updates for point in study.points] == sorted(point.updates for point in study.points)
    assert len(study.points) == 3
    assert all(point.estimate.critical_batch.value >= 0 for point in study.points)
    stored = json.loads((tmp_path / "branches.json").read_text())
    assert stored["sentences"] == study.sentences()
    assert stored["points"][0]["branches"][0]["samples"] == 512
    lines = (tmp_path / "branches.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 8
    again = []
    assert (
        branches(TaskRun(run), at=[244, 163, 82], multiples=(1, 4, 16), samples=1024, windows=2, out=tmp_path, say=again.append).rows()
        == study.rows()
    )
    assert (tmp_path / "branches.jsonl").read_text().splitlines() == lines
    assert not any("window" in line and "update" in line for line in again)


def test_the_critical_batch_of_a_known_curve(tmp_path):
    curve = Curve()
    study = branches(curve, at=[2000], samples=20_000, out=tmp_path)
    (point,) = study.points
    assert point.estimate.critical_batch.value == pytest.approx(500, rel=0.03)
    assert study.cost == pytest.approx(3 * 3.5 * 20_000 / 1_000_000)
    assert {branch.order for _, branch in curve.made} == {1, 2, 3}
    assert {branch.rate_factor for _, branch in curve.made} == {1, 2, 4}
    assert study.sentences() == [
        f"at update 2,000: critical batch about 500 [{study.sentences()[0].split('[')[1].split(']')[0]}] (95 %) samples; "
        "not worse by 0.01 up to 64"
    ]


def test_each_batch_takes_the_best_of_the_rates(tmp_path):
    study = branches(Curve(best_factor=0.5), at=[2000], samples=20_000, lr_factors=(0.5, 1.0), out=tmp_path)
    assert study.points[0].rate_factors == (0.5, 0.5, 1.0, 2.0)
    assert study.points[0].estimate.critical_batch.value == pytest.approx(500, rel=0.03)


def test_a_fifth_of_the_run_is_the_default_and_checkpoints_are_spread_over_it(tmp_path):
    curve = Curve()
    study = branches(curve, out=tmp_path)
    assert study.cost == pytest.approx(0.2, rel=1e-3)
    for held_out in (300, 5000, 100_000):  # fewer than the least, than a branch takes, and more
        curve.num_held_out = held_out
        small = branches(curve, at=[2000], out=tmp_path / f"{held_out}")
        assert small.cost == pytest.approx(0.2, rel=2e-3)
        assert curve.made[-1][1].held_out == min(held_out, max(500, small.samples))
    assert [point.updates for point in study.points] == [2000, 4000, 8000]


def test_multiples_lie_closer_where_branches_are_short(tmp_path):
    for samples, largest in ((20_000, 16), (6000, 9), (4000, 6), (1100, 4)):
        study = branches(Curve(), at=[2000], samples=samples, out=tmp_path / f"{samples}")
        assert study.points[0].full[-1].global_batch == 64 * largest


def test_a_batch_that_diverges_counts_as_no_gain(tmp_path):
    study = branches(Curve(diverges_from=1024), at=[2000], samples=20_000, out=tmp_path)
    assert study.points[0].estimate.critical_batch.value < 400
    assert study.rows()[-1][3] == "diverged"
    assert json.loads((tmp_path / "branches.json").read_text())["points"][0]["branches"][-1]["losses"] == [None] * 3


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"samples": 1000, "multiples": [4, 16]}, "1.0 updates of the largest batch, 1,024: take 4,096 samples"),
        ({"at": [1500]}, "at = 1,500: no checkpoint of that update; there are 1,000, 2,000"),
        ({"at": [15_000], "samples": 50_000}, "the run has 40,000 samples left there, a branch takes 50,000"),
        ({"multiples": [1]}, "one larger than 1 at least"),
        ({"windows": 0}, "windows"),
        ({"lr": "cubic"}, "lr"),
        ({"lr_factors": []}, "lr_factors"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(keywords, words, tmp_path):
    curve = Curve()
    with pytest.raises(UserError, match=words):
        branches(curve, out=tmp_path / "out", **keywords)
    assert curve.made == []


def test_all_that_diverge_and_no_gain_are_errors_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="all branches diverged: their rates are too high"):
        branches(Curve(diverges_from=1), at=[2000], samples=20_000, out=tmp_path / "a")
    rising = Curve()
    rising.branch = lambda updates, branch: BranchResult(2.1, 1, branch.samples, 0.1)
    with pytest.raises(UserError, match="no branch is better than the checkpoint"):
        branches(rising, at=[2000], samples=20_000, out=tmp_path / "b")


def test_a_stop_says_that_the_same_command_goes_on(tmp_path):
    curve = Curve()

    def stopped(updates, branch):
        raise Interrupted("stopped after update 7; nothing was saved: no --out was given")

    curve.branch = stopped
    words = "stopped at update 2,000, batch 64, window 1; finished branches are kept, and the same command goes on with this one"
    with pytest.raises(Interrupted, match=words):
        branches(curve, at=[2000], samples=20_000, out=tmp_path)


def test_branches_so_long_that_their_gain_has_flattened_are_told(tmp_path):
    curve = Curve()
    curve.branch = lambda updates, asked: BranchResult(1.9 + 1e-4 * asked.multiple + 1e-5 * asked.order, 9, asked.samples, 0.1)
    assert "branches gain hardly more from twice the samples" in branches(curve, at=[2000], samples=20_000, out=tmp_path).notes[-1]


def test_windows_that_are_all_alike_are_told(tmp_path):
    curve, branch = Curve(), Curve.branch
    curve.branch = lambda updates, asked: branch(curve, updates, Branch(**{**vars(asked), "order": 1}))
    assert "does not follow the seed" in branches(curve, at=[2000], samples=20_000, out=tmp_path).notes[-1]


def test_a_checkpoint_without_gain_is_told_and_leaves_the_others(tmp_path):
    curve, branch = Curve(), Curve.branch
    curve.branch = lambda updates, asked: BranchResult(2.1, 1, asked.samples, 0.1) if updates == 4000 else branch(curve, updates, asked)
    study = branches(curve, at=[2000, 4000], samples=20_000, out=tmp_path)
    assert [point.updates for point in study.points] == [2000]
    assert study.notes[-1].startswith("at update 4,000: no branch is better than the checkpoint")


def test_a_run_without_checkpoints_or_of_another_recipe_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        TaskRun(tmp_path)
    (copied := tmp_path / "run").mkdir()
    for path in run.iterdir():
        if path.suffix in (".pt", ".jsonl", ".toml"):
            (copied / path.name).write_bytes(path.read_bytes())
    (copied / "recipe.toml").write_text(RECIPE.replace({"optimizer.lr": 0.05}).to_toml())
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        branches(TaskRun(copied), samples=1024, windows=2, out=tmp_path / "out")
    for path in copied.glob("update-*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="kept no checkpoints to branch from; train it with --keep-checkpoints"):
        branches(TaskRun(copied), samples=1024, windows=2, out=tmp_path / "out")


class NothingHeldOut:
    """A task whose validation set is empty."""

    def __init__(self):
        self._task = load_task("digits/mlp")

    def __getattr__(self, name):
        return getattr(self._task, name)

    def splits(self):
        data = self._task.splits()
        return data._replace(validation=TensorDataset(*(tensor[:0] for tensor in data.validation.tensors)))


def test_no_held_out_data_is_refused(run):
    with pytest.raises(UserError, match="has no validation data, and branches are compared by the loss on it"):
        TaskRun(run, task=NothingHeldOut())


SCRIPT = """
import argparse, json, math, pathlib
parser = argparse.ArgumentParser()
for name in ("lr", "batch", "samples", "seed"): parser.add_argument("--" + name, type=float)
parser.add_argument("--out"); parser.add_argument("--start")
a = parser.parse_args()
theta = json.loads(pathlib.Path(a.start).read_text()) if a.start else 4.0
updates = int(a.samples // a.batch)
for update in range(1, updates + 1):
    theta -= a.lr * (1 - (update - 1) / updates if a.start else 1) * theta
    if update % 10 == 0:
        pathlib.Path(a.out, f"step-{update:05d}.json").write_text(json.dumps(theta))
    if update % 10 == 0 or update == updates:
        print(f"update {update} loss {0.5 * theta ** 2 * (1 + 1e-4 * a.seed)!r}", flush=True)
print(f"final {0.5 * theta ** 2!r}")
"""
QUADRATIC = Recipe.from_dict(
    {
        "task": "quadratic",
        "num_train_samples": 800,
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.0},
        "schedule": {"decay": {"kind": "constant"}},
        "batch": {"global_batch": 8},
        "budget": {"samples": 800},
    }
)
LOSS = {"name": "loss", "unit": "nats", "better": "lower", "margin": 0.02}


def test_a_command_is_branched_from_its_own_checkpoints(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = f"{sys.executable} train.py --lr {{optimizer.lr}} --batch {{batch.global_batch}} --samples {{total_samples}} --seed {{seed}}"
    section = {
        "run": f"{command} --out {{out}} --start {{start}}",
        "score": "final ([0-9.e-]+)",
        "curve": r"update (?P<updates>\d+) loss (?P<score>[0-9.e-]+)",
        "checkpoint": "step-{updates}.json",
        "metric": LOSS,
    }
    runner = CommandRunner(section, base=tmp_path)
    runner.run(QUADRATIC, Request(out=tmp_path / "run"))
    base = ScriptRun(runner, tmp_path / "run", out=tmp_path / "out")
    assert list(base.checkpoints()) == list(range(10, 101, 10))
    study = branches(base, at=[20], multiples=(1, 4), samples=160, windows=2, out=tmp_path / "out")
    (point,) = study.points
    theta = 4 * 0.98**20
    assert point.start_loss == pytest.approx(0.5 * theta**2, rel=1e-9)
    for update in range(20):
        theta *= 1 - 0.02 * (1 - update / 20)
    assert point.full[0].losses == pytest.approx([0.5 * theta**2 * (1 + 1e-4 * seed) for seed in (1, 2)], rel=1e-9)
    assert study.tolerance == pytest.approx(0.02)
    with pytest.raises(UserError, match="does not say where its checkpoints are"):
        ScriptRun(CommandRunner({**section, "checkpoint": None}, base=tmp_path), tmp_path / "run", out=tmp_path).checkpoints()
    with pytest.raises(UserError, match="must be a path with {updates} in it once"):
        ScriptRun(CommandRunner({**section, "checkpoint": "last.json"}, base=tmp_path), tmp_path / "run", out=tmp_path).checkpoints()
    assert "keeps its own schedule" in base.notes[0]
    unseeded = CommandRunner({**section, "run": section["run"].replace("{seed}", "0")}, base=tmp_path)
    with pytest.raises(UserError, match="has no place for seed"):
        ScriptRun(unseeded, tmp_path / "run", out=tmp_path)
    fixed = {**section, "run": section["run"].replace("{batch.global_batch}", "8")}
    with pytest.raises(UserError, match=r"has no place for batch\.global_batch"):
        ScriptRun(CommandRunner(fixed, base=tmp_path), tmp_path / "run", out=tmp_path)


def train(recipe, run):
    theta = json.loads(run.start.read_text()) if run.start is not None else 4.0
    for update in range(1, recipe.num_updates + 1):
        theta *= 1 - recipe.optimizer.lr
        if update % 10 == 0 or update == recipe.num_updates:
            run.log(updates=update, score=0.5 * theta**2)
        if update % 10 == 0:
            (run.checkpoint_dir / f"{update}.json").write_text(json.dumps(theta))
    run.score(0.5 * theta**2)


train.metric, train.checkpoint = Metric("loss", "nats", "lower", margin=0.02), "{updates}.json"


def test_a_function_is_branched_from_its_own_checkpoints(tmp_path):
    runner = FunctionRunner(train)
    runner.run(QUADRATIC, Request(out=tmp_path / "run"))
    base = ScriptRun(runner, tmp_path / "run", out=tmp_path / "out")
    study = branches(base, at=[20], multiples=(1, 2), samples=160, windows=2, out=tmp_path / "out")
    theta = 4 * 0.98**40
    assert study.points[0].full[0].losses == pytest.approx([0.5 * theta**2] * 2, rel=1e-9)
    with pytest.raises(UserError, match="does not say where its checkpoints are; set train.checkpoint"):
        FunctionRunner(lambda recipe, run: None, metric=LOSS, name="train").checkpoints(tmp_path)
