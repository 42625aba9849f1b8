"""Each extra: what its packages are for, and the one line that says that one is missing."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

from bigbatch import Recipe, fit
from bigbatch.core.extras import DISTRIBUTIONS, MissingExtra

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ABSENT = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec


def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {packages!r} else find_spec(name, path, target)


PathFinder.find_spec = find_others
from bigbatch.__main__ import main

main()
"""
NEEDED = [  # extra, package, what needs it, command
    ("cli", "typer", "the command line", "--help"),
    ("cli", "rich", "the command line", "plan digits/mlp --global-batch 64"),
    ("report", "jinja2", "a report", "report runs/one"),
    ("report", "matplotlib", "a report", "simulate --workers 8 --bandwidth 50Gbit --latency 50us --model-bytes 100MB --step 120ms"),
    ("report", "matplotlib", "a report", "scale digits/mlp --to 512 --quiet"),
    ("study", "scipy", "the verdict of a study", "scale digits/mlp --to 512 --quiet"),
    ("study", "scipy", "a fit of the critical batch", "critical digits/mlp --batches 8,32,128 --target 0.9"),
    ("steps", "optuna", "a search of steps to a target", "steps digits/mlp --batches 8..128 --target 0.9"),
    (
        "postgresql",
        "psycopg",
        "a PostgreSQL storage",
        "steps digits/mlp --batches 8..128 --target 0.9 --storage postgresql://localhost/trials",
    ),
    ("study", "scipy", "Keskar's sharpness", "curvature runs/one"),
    ("trackers", "mlflow", "a run on MLflow", "train digits/mlp --track mlflow --out runs/one"),
    ("trackers", "wandb", "a run on Weights & Biases", "scale digits/mlp --to 512 --track wandb --quiet"),
    ("parameter-server", "zmq", "a parameter server", "train digits/mlp --workers 2 --comm parameter_server --out runs/served"),
]


def run_without(packages, command, folder):
    program = [sys.executable, "-c", ABSENT.format(packages=packages), *command.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def line(what, package, extra):
    return f"{what} needs {DISTRIBUTIONS.get(package, package)}, which is not installed: pip install 'bigbatch[{extra}]'"


@pytest.mark.parametrize(("extra", "package", "what", "command"), NEEDED, ids=lambda value: value.split()[0])
def test_a_missing_package_is_one_line_before_anything_is_trained(extra, package, what, command, tmp_path):
    done = run_without({package}, command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line(what, package, extra)}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["papers", "tasks", "runs .", "plan digits/mlp --global-batch 64", "train digits/mlp --set budget.epochs=1 --quiet"]
)
def test_commands_that_need_no_other_extra_work_without_them(command, tmp_path):
    done = run_without({"jinja2", "matplotlib", "scipy", "zmq", "redis", "tensorboard", "sklearn"}, command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_redis_store_says_so_too(monkeypatch):
    from bigbatch.comm.rendezvous.redis_store import RedisStore

    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=re.escape(line("a Redis store", "redis", "redis"))):
        RedisStore(job="j", rank=0, world_size=1)


@pytest.mark.parametrize("wanted", [None, True, False])
def test_a_run_without_tensorboard_goes_on_unless_it_is_asked_for(wanted, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboard")] + ["tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1})
    if wanted:
        with pytest.raises(MissingExtra, match=re.escape(line("a TensorBoard file", "tensorboard", "tensorboard"))):
            fit("digits/mlp", recipe, out=tmp_path, quiet=True, tensorboard=True)
    else:
        assert fit("digits/mlp", recipe, out=tmp_path, quiet=True, tensorboard=wanted).updates > 0
        assert (tmp_path / "result.json").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_the_critical_batch_is_not_fitted_in_silence_without_scipy(monkeypatch):
    from bigbatch.noise.critical_batch import Run, fit_critical_batch

    for name in ("scipy", "scipy.optimize", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=re.escape(line("a fit of the critical batch", "scipy", "study"))):
        fit_critical_batch([Run(100, 1100), Run(500, 300), Run(1000, 200)])


@pytest.mark.parametrize(
    ("module", "what", "package", "extra"),
    [
        ("transformers", "the adapter to Transformers", "transformers", "transformers"),
        ("transformers", "the adapter to Transformers", "accelerate", "transformers"),
        ("accelerate", "the adapter to Accelerate", "accelerate", "accelerate"),
    ],
)
def test_an_adapter_says_so_too(module, what, package, extra, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == package or n.startswith("bigbatch.integrations")] + [package]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=re.escape(line(what, package, extra))):
        importlib.import_module(f"bigbatch.integrations.{module}")


def test_without_rich_progress_is_plain_lines(monkeypatch, capsys):
    from bigbatch.train.display.progress import Display

    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"] + ["rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    with Display("a run", total=10, start=0, epoch=10, quiet=False) as show:
        show.update(10, loss=0.5)
    assert capsys.readouterr().err.startswith("a run  epoch 1.0/1  loss 0.5000")


def test_all_is_all_but_ray_and_integrations_and_every_extra_is_named_somewhere():
    users = EXTRAS.keys() - {"all", "dev", "docs"}
    left_out = {"postgresql", "ray", "transformers", "accelerate", "lightning", "trackers"}  # large, or what a script that uses them has
    assert set(re.findall(r"[\w-]+", EXTRAS["all"][0].partition("[")[2])) == users - left_out
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    table = (ROOT / "docs" / "install.md").read_text()
    for extra in users:
        assert f'extra="{extra}"' in source, extra
        assert f"| `{extra}` |" in table, extra
