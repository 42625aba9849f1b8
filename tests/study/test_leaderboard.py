"""studies/leaderboard: its candidates can be planned, and its plain Muon is Muon."""

import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).parents[2] / "studies" / "leaderboard"
CHECKS = """
import sys
from pathlib import Path

import torch

from bigbatch.optim import Muon, muon_groups
from bigbatch.optim.muon.muon_section import MuonSection

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import run
from plain_muon import PlainMuon

found = sorted((folder / "candidates").glob("*.py"))
for path in found:
    method = run.load(path)
    assert len(method.CHOICES) <= run.MOST_CHOICES
    for choice in method.CHOICES:
        for name in run.DEVELOPMENT:
            planned = run.recipe_of(method, name, choice)
            assert planned.total_samples == run.planned(name).total_samples, (path.stem, choice)

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))

plain, usual = model(), model()
settings = {"lr": 0.05, "adam_lr": 0.02, "weight_decay": 0.1}
optimizers = PlainMuon(plain, MuonSection(**settings)), Muon(muon_groups(usual, **settings))
for update in range(5):
    for p, q in zip(plain.parameters(), usual.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(update))
        q.grad = p.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
for p, q in zip(plain.parameters(), usual.parameters(), strict=True):
    torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-3)  # both orthogonalise in bfloat16, batched differently
print(len(found))
"""


def test_every_candidate_can_be_planned_and_plain_muon_is_muon():
    """In a process of its own: candidates register optimizers."""
    done = subprocess.run([sys.executable, "-c", CHECKS, str(STUDY)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 11
