"""Local steps around a parameter server, as processes of `bigbatch train --workers`."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from tests.cli.command import bigbatch
from tests.distributed.jobs import left_behind
from tests.reference.diloco import diloco

from bigbatch import Recipe
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import load_task
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.setup.build import build_model, seed_everything

PERIOD, LOCAL_BATCH, UPDATES, LR = 3, 16, 12, 0.05
OUTER = {"outer_lr": 0.7, "outer_momentum": 0.9}
CHANGES = {
    "precision": "float64",
    "seed": 5,
    "optimizer": {"name": "sgd", "lr": LR},
    "schedule": {},
    "batch": {"global_batch": 2 * LOCAL_BATCH},
    "budget": {"updates": UPDATES * PERIOD},
    "comm": {"kind": "parameter_server", "period": PERIOD, **OUTER},
}


def test_two_workers_equal_the_reference(tmp_path):
    """Without momentum inside: then it does not matter which worker takes which item."""
    task, recipe = load_task("digits/mlp"), Recipe.named("digits/mlp").replace(CHANGES)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    bigbatch("train", "digits/mlp", "--recipe", "recipe.toml", "--workers", "2", "--out", "run", "--quiet", cwd=tmp_path)

    seed_everything(recipe.seed)
    model = build_model(task, recipe).train()
    inputs, targets = splits_of(task).train.tensors
    names = [name for name, _ in model.named_parameters()]
    step = iter(range(UPDATES * PERIOD))

    def gradient(weights, start):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), model.parameters())
        (index,) = index_batches(recipe.seed, recipe.num_train_samples, start, iter([LOCAL_BATCH]))
        loss = task.losses(model(inputs[index].double()), targets[index]).mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy()

    def gradients(X):
        update, j = divmod(next(step), PERIOD)
        starts = [((2 * update + i) * PERIOD + j) * LOCAL_BATCH for i in range(2)]
        return np.stack([gradient(X[:, i], start) for i, start in enumerate(starts)], axis=1)

    first = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
    *_, last = diloco(np.stack([first, first], axis=1), gradients, LR, 0.0, UPDATES * PERIOD, period=PERIOD, **OUTER)
    found = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert np.abs(last[:, 0] - first).max() > 0.01
    np.testing.assert_allclose(torch.cat([found[name].reshape(-1) for name in names]).numpy(), last[:, 0], rtol=0, atol=1e-12)


DIES = """
import os, pathlib, signal
from bigbatch.tasks.digits_mlp import DigitsMLP

class Dies(DigitsMLP):
    calls = 0

    def losses(self, outputs, targets):
        self.calls += 1
        if self.calls == 8 * 5 + 3 and os.environ.get("BIGBATCH_ROLE") == "worker:1" and not pathlib.Path("died").exists():
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(outputs, targets)
"""


@pytest.mark.slow
@pytest.mark.parametrize("quorum", [False, True])
def test_a_worker_is_killed_in_the_middle_of_an_item(tmp_path, quorum):
    """In the third of its eight updates: its samples are assigned again, and each is used once."""
    (tmp_path / "task.py").write_text(DIES)
    sets = {"batch.micro_batch": 8, "comm.period": 8, "comm.outer_lr": 0.7, "comm.outer_momentum": 0.3, "budget.epochs": 20}
    sets |= {"optimizer.momentum": 0.0, "optimizer.nesterov": False}  # staleness would add to it
    if quorum:
        sets |= {"comm.mode": "asynchronous", "comm.staleness_bound": 2, "comm.backup_workers": 1}
    recipe = Recipe.named("digits/mlp").replace({"batch.global_batch": 24, "comm": {"kind": "parameter_server"}, **sets})
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    command = ["train", "task:Dies", "--recipe", "recipe.toml", "--quiet", "--workers", "3", "--out", "run"]
    done = bigbatch(*command, cwd=tmp_path, expect=0, PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert (tmp_path / "died").exists()
    assert "lost: worker 1 of 3 was killed by SIGKILL" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "record.jsonl").read_text().splitlines()]
    end, updates = lines[-1], [line for line in lines if line["kind"] == "update"]
    assert [line["update"] for line in updates] == list(range(1, len(updates) + 1))
    assert (end["kind"], end["samples"], end["applied"]) == ("end", recipe.total_samples, [[0, recipe.total_samples]])
    assert end["test_score"] > 0.9
    assert left_behind(tmp_path / "run") == []
