"""`bigbatch check` as a person meets it: its table, its sentence, its exit codes."""

import json
from pathlib import Path

from tests.cli.command import bigbatch

from bigbatch.cli.display.tables import show

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch
from torch.utils.data import DataLoader

from bigbatch.testing import probe

told = probe(micro_batch=8, accumulation=2, epochs=2)
torch.manual_seed(told.seed)
g = torch.Generator().manual_seed(0)
loader = DataLoader(told.data([torch.randn(4, generator=g) for _ in range(64)]), batch_size=told.micro_batch, shuffle=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(told.epochs):
    for i, x in enumerate(loader):
        (model(x).square().sum() / DIVISOR).backward()
        if (i + 1) % told.accumulation == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
"""


def test_a_right_loop_and_a_faulty_one(tmp_path):
    done = bigbatch("check", "tests.check.loops:right_tokens", "--workers", "1,2", "--quiet", "--json", tmp_path / "right.json", cwd=ROOT)
    assert "the same update in all 5 arrangements" in done.stdout
    assert json.loads((tmp_path / "right.json").read_text())["same"]
    done = bigbatch("check", "tests.check.loops:dropout", "--workers", "1,2", "--json", "-", cwd=ROOT, expect=1)
    found = json.loads(done.stdout)
    assert [culprit["name"] for culprit in found["culprits"]] == ["dropout"]
    assert [row["same"] for row in found["arrangements"] if row["workers"] == 2] == [False, False]
    assert "without dropout" in done.stderr
    bigbatch("check", "tests.check.loops:dropout", "--workers", "1,2", "--allow", "dropout", cwd=ROOT)


def test_a_name_in_a_title_is_no_emoji(capsys):
    show("mine:train: deviation [of all]", ["a column that is wide enough"], [[1]])
    assert "mine:train: deviation [of all]" in capsys.readouterr().out


def test_a_script(tmp_path):
    (tmp_path / "right.py").write_text(SCRIPT.replace("DIVISOR", "64"))
    (tmp_path / "wrong.py").write_text(SCRIPT.replace("DIVISOR", "len(x)"))
    assert "the same update" in bigbatch("check", "right.py", "--workers", "1", cwd=tmp_path).stdout
    done = bigbatch("check", "wrong.py", "--workers", "1", cwd=tmp_path, expect=1)
    assert "scale: gradients are multiplied by the number of micro-batches" in " ".join(done.stdout.split())


def test_what_cant_be_run(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module")
    (tmp_path / "empty.py").write_text("def train(probe): pass")
    for loop, message in {
        "train": "error: loop 'train': must be module:function, or a script's path",
        "absent.py": "error: loop 'absent.py': no such script; check its path",
        "absent:train": "error: function 'absent:train': no module named 'absent'",
        "empty:trian": "error: function 'empty:trian': unknown function in empty 'trian': did you mean 'train'?",
        "broken:train": "error: loop 'broken:train': its module can't be imported: ModuleNotFoundError: No module named 'no_such_module'",
        "empty:train": "error: empty:train: made no update",
        "broken.py": "error: broken.py at 1 worker x 1 micro-batch: worker 0 raised ModuleNotFoundError",
    }.items():
        done = bigbatch("check", loop, "--quiet", cwd=tmp_path, expect=2)
        assert done.stderr.splitlines()[-1].startswith(message), done.stderr
    assert "must be whole numbers" in bigbatch("check", "empty:train", "--workers", "two", cwd=tmp_path, expect=2).stderr
