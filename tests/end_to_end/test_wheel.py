"""The wheel, installed into environments that hold what its own requirements name, and nothing else.

An environment has no packages of its own but links to those of this one, so that torch is neither downloaded nor copied.
"""

import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.metadata import parse_email
from packaging.requirements import Requirement
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ("matplotlib", "redis", "rich", "scipy", "sklearn", "tensorboard", "typer", "zmq")  # torch itself brings jinja2
IN_A_LOOP = f"""
import importlib.util, sys
import bigbatch.optim, torch

assert not [name for name in {LEFT_OUT!r} if importlib.util.find_spec(name)], "more than the core is here"
assert not {{"pydantic", "tomli_w", "filelock", "platformdirs", "safetensors"}} & sys.modules.keys()
weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
lars = bigbatch.optim.LARS([weight], lr=1.0, momentum=0.0, trust_coefficient=0.1)
(weight * torch.tensor([0.0, 2.0])).sum().backward()
lars.step()
print(weight.tolist())  # 0.1 * |w| / |g| = 0.25 times (0, 2) away

from bigbatch.noise.interval import ratio_of_means
print(ratio_of_means([7.0, 9.0, 8.0, 8.0], [1.0, 1.0, 1.1, 0.9]).value)

import bigbatch
recipe = bigbatch.Recipe.named("digits/mlp").replace({{"budget.epochs": 1}})
print(bigbatch.fit("digits/mlp", recipe, out="run").updates)
from bigbatch.train.state.export import export_weights
print(export_weights("run", "weights.safetensors").num_tensors)
try:
    bigbatch.scale
except bigbatch.UserError as error:
    print(error)
"""


def run(*command, cwd, expect=0):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BIGBATCH", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**variables, "OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", ROOT]
    env = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    subprocess.run([sys.executable, "-m", "pip", *map(str, command), "--wheel-dir", str(folder)], env=env, check=True, timeout=LIMIT_S)
    (built,) = folder.glob("*.whl")
    return built


def requirements_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return [Requirement(text) for text in parse_email(archive.read(name))[0]["requires_dist"]]


def needs(wheel, extras):
    """Distributions that the wheel with extras needs, and those that they need, as their metadata say."""
    found, todo = {}, [(requirement, frozenset(extras)) for requirement in requirements_of(wheel)]
    while todo:
        requirement, asked = todo.pop()
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": extra}) for extra in (*asked, "")):
            continue
        name, wanted = requirement.name.lower().replace("_", "-"), frozenset(requirement.extras)
        if name == "bigbatch":
            todo += [(other, wanted) for other in requirements_of(wheel)]
        elif not wanted <= found.get(name, (None, {None}))[1] or name not in found:
            found[name] = distribution(name), wanted | found.get(name, (None, frozenset()))[1]
            todo += [(Requirement(text), found[name][1]) for text in found[name][0].requires or ()]
    return {name: each for name, (each, _) in found.items()}


def environment(wheel, folder, extras=()):
    """A virtual environment with the wheel; returns its folder of programs."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    packages, links = next((folder / "venv").glob("lib/python*/site-packages")), folder / "links"
    links.mkdir()
    for each in needs(wheel, extras).values():
        for top in {Path(file).parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            if not top.endswith(".pth") and not (links / top).exists():
                (links / top).symlink_to(each.locate_file(top))
    (packages / "links.pth").write_text(f"{links}\n")
    asked = f"bigbatch[{','.join(extras)}] @ {wheel.as_uri()}" if extras else wheel
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--no-index", asked, cwd=folder)
    return python.parent


def demo_extras():
    """What `make demo` installs."""
    makefile = (ROOT / "Makefile").read_text()
    (rule,) = re.findall(r"^demo: (\S+) ", makefile, flags=re.M)
    (extras,) = re.findall(rf"^{re.escape(rule)}:.*\n\t\$\(INSTALL\) -e '\.\[([\w,-]+)\]'", makefile, flags=re.M)
    return extras.split(",")


def test_the_wheel_has_the_data_and_its_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for file in ("bigbatch/tasks/data/digits.csv.gz", "bigbatch/tasks/data/digits.md", "bigbatch/report/templates/report.html.j2"):
        assert file in names
    assert any(name.endswith("licenses/src/bigbatch/tasks/data/digits.md") for name in names)
    assert not any("tests/" in name for name in names)


def test_the_core_steps_measures_trains_and_exports(wheel, tmp_path):
    programs = environment(wheel, tmp_path)
    done = run(programs / "python", "-W", "error", "-c", IN_A_LOOP, cwd=tmp_path)
    step, ratio, updates, tensors, missing = done.stdout.splitlines()
    assert step == "[3.0, 3.5]"
    assert float(ratio) == 8.0
    assert int(updates) > 0
    assert int(tensors) == 4
    assert missing == "the verdict of a study needs scipy, which is not installed: pip install 'bigbatch[study]'"
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()
    for program in ([programs / "bigbatch"], [programs / "python", "-m", "bigbatch"]):
        said = run(*program, "--help", cwd=tmp_path, expect=2)
        assert said.stderr == "error: the command line needs rich, which is not installed: pip install 'bigbatch[cli]'\n"


def test_the_command_line_alone(wheel, tmp_path):
    programs = environment(wheel, tmp_path, ["cli"])
    assert "doctor" in run(programs / "bigbatch", "--help", cwd=tmp_path).stdout
    assert "digits/mlp" in run(programs / "bigbatch", "tasks", cwd=tmp_path).stdout
    said = run(programs / "bigbatch", "scale", "digits/mlp", "--to", "512", "--quiet", cwd=tmp_path, expect=2)
    assert re.fullmatch(r"error: a report needs matplotlib, which is not installed: pip install 'bigbatch\[report\]'\n", said.stderr)


@pytest.mark.slow
def test_the_demo_with_what_it_installs(wheel, tmp_path):
    programs = environment(wheel, tmp_path, demo_extras())
    (command, *_) = re.findall(r'^"\$BIN/bigbatch" (scale .*)$', (ROOT / "examples" / "demo.sh").read_text(), flags=re.M)
    values = {"$TASK": "digits/mlp", "$TO": "512", '"$SEEDS"': "1", '"$MAX_SEEDS"': "1", '"$OUT"': "demo"}
    short = [values.get(word, word) for word in command.split()] + ["--set", "budget.epochs=1"]
    done = run(programs / "bigbatch", *short, cwd=tmp_path)
    assert "batch only at 512" in done.stdout
    assert (tmp_path / "demo" / "report.html").exists()
