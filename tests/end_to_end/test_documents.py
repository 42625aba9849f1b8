"""Every code block of the README and of the pages in docs/ works as written.

`sh`: commands are run, make targets exist; `python` is run; `toml` is a recipe, or a part of one, or a settings file. Each block is run in
a folder of its own: none needs what another made. A block with a title is a file; a page that has some is run as a whole, in one folder.
`console`, `py` and `text` are not run.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.forks import Program
from tests.limits import LIMIT_S

from bigbatch import Recipe
from bigbatch.runner.settings_file import load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {"console", "py", "text"}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
REALLY_STARTED = ("bigbatch tasks", "torchrun ", "bigbatch report runs/one", "python ")
"""By the programs that are installed; the others are forked, see forks.py."""


class Block(NamedTuple):
    """Of a page: its kind, the file that it is, and its text."""

    page: str
    kind: str
    title: str | None
    text: str


def blocks_of(path):
    return [Block(path.name, kind, title or None, text) for kind, title, text in BLOCK.findall(path.read_text())]


ALL = [block for path in PAGES for block in blocks_of(path)]
AS_A_WHOLE = sorted({block.page for block in ALL if block.title})
ALONE = [block for block in ALL if block.page not in AS_A_WHOLE]


def of(kind):
    """Blocks that are run alone, as parameters of a test."""
    found = [block for block in ALONE if block.kind == kind]
    return [pytest.param(block, id=f"{block.page}-{' '.join(block.text.split()[:3])}-{number}") for number, block in enumerate(found)]


def test_there_is_something_to_run_and_nothing_that_is_overlooked():
    assert {block.kind for block in ALL} <= {"sh", "python", "toml"} | NOT_RUN
    assert len([block for block in ALL if block.kind not in NOT_RUN]) > 50
    for path in PAGES:
        assert len(re.findall(r"^ *```", path.read_text(), re.M)) == 2 * len(blocks_of(path)), f"{path.name}: a block not at the margin"
        rest = BLOCK.sub("", path.read_text())
        assert not re.search(r"\n\n    (?:bigbatch|python|pip|make|import|from) ", rest), f"{path.name}: code without a fence"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "studies" / "README.md"], ids=lambda path: path.name)
def test_links_lead_to_files_of_the_repository(path):
    """As on GitHub; the site's own links, and anchors, are in test_site.py."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("block", of("python"))
def test_python_blocks(block, tmp_path):
    run_python(block.text, tmp_path)


def run_python(text, folder):
    program = Program(["-c", text], environment=os.environ, folder=folder, warnings="error")
    assert program.wait(LIMIT_S) == 0, program.said()


@pytest.mark.parametrize("block", of("toml"))
def test_toml_blocks(block, tmp_path):
    """A whole recipe, a settings file, or sections to be put into either."""
    fields = tomllib.loads(block.text)
    if "num_train_samples" not in fields:
        whole = tomllib.loads(Recipe.named("digits/mlp").to_toml())
        command = fields.pop("command", None)
        Recipe.from_dict(whole | fields)
        assert command is None or command.keys() <= {"run", "checkpoint"}
    elif "command" in fields:
        (tmp_path / "mine.toml").write_text(block.text)
        load_settings(tmp_path / "mine.toml")
    else:
        assert Recipe.from_toml(block.text) == Recipe.named(fields["task"])


def program_of(words):
    """The program of that name that is installed beside this Python, or the module where there is none."""
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    program = Path(sys.executable).with_name(words[0])
    modules = {"bigbatch": "bigbatch", "torchrun": "torch.distributed.run"}
    return [str(program), *words[1:]] if program.exists() else [sys.executable, "-m", modules[words[0]], *words[1:]]


def run_commands(text, folder):
    for command in text.splitlines():
        if command.startswith("make "):
            assert subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0, command
            continue
        assert command.startswith(("bigbatch ", "torchrun ", "python ")), command
        words = shlex.split(command)
        if command.startswith(REALLY_STARTED):
            done = subprocess.run(program_of(words), cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            code, printed, said = done.returncode, done.stdout, done.stderr
        else:
            program = Program(["-m", *words], environment=os.environ, folder=folder)
            code, (printed, said) = program.wait(LIMIT_S), program.communicate()
        assert code == 0, f"{command}\n{said}"
        assert printed


@pytest.mark.parametrize("block", of("sh"))
def test_commands(block, tmp_path):
    """Those of a block in their order."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run_commands(block.text, tmp_path)
    for folder in re.findall(r"^bigbatch scale .*--out (\S+)$|^bigbatch report (\S+)$", block.text, flags=re.M):
        assert (tmp_path / "".join(folder) / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)  # it starts some forty short runs, two at a time
@pytest.mark.parametrize("page", AS_A_WHOLE)
def test_a_page_from_top_to_bottom(page, tmp_path):
    """The tutorial: its script, its settings file and its commands, with the outcome of each there."""
    for block in (block for block in ALL if block.page == page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.kind == "sh":
            run_commands(block.text, tmp_path)
        elif block.kind == "python":
            run_python(block.text, tmp_path)
    assert (tmp_path / "runs/critical/digits/critical.json").exists()
    assert (tmp_path / "runs/scale/digits/report.html").exists()
    assert Recipe.load(tmp_path / "large.toml").batch.global_batch == 64
