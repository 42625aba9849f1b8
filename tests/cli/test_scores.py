"""A task whose score is a loss in nats, as a person meets it at the command line."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tests import loss_task
from tests.cli.command import bigbatch


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(loss_task.__file__), tmp_path / "my_task.py")
    (tmp_path / "my.toml").write_text(loss_task.RECIPE.to_toml())
    return tmp_path


def test_train_prints_the_score_in_its_unit(folder):
    done = bigbatch("train", "my_task:Nats", "--recipe", "my.toml", "--quiet", cwd=folder)
    assert re.match(r"my_task:Nats: test loss 0\.\d{3} nats, validation 0\.\d{3} nats, 48 updates of 16, ", done.stdout)


def test_scale_takes_the_task_s_margin_and_another(folder):
    command = ["scale", "my_task:Nats", "--recipe", "my.toml", "--to", 64, "--seeds", 2, "--max-seeds", 2, "--quiet"]
    done = bigbatch(*command, cwd=folder)
    assert "margin +0.02 nats at 95 %" in done.stdout
    assert re.search(r"0\.\d{3} ± 0\.\d{3} nats", done.stdout)
    assert "test loss" in done.stdout
    assert "margin +3 nats at 95 %" in bigbatch(*command, "--margin", 3, cwd=folder).stdout
    stored = json.loads(bigbatch(*command, "--json", "-", cwd=folder).stdout)
    assert (stored["metric"]["unit"], len(stored["arms"])) == ("nats", 3)


def test_critical_to_a_target_of_a_loss(folder):
    command = ["critical", "my_task:Nats", "--recipe", "my.toml", "--batches", "8,16,32", "--max-epochs", 1, "--quiet"]
    done = bigbatch(*command, "--target", 0.01, cwd=folder)
    assert "my_task:Nats to validation loss 0.01 nats" in done.stdout
    assert "no fit: 0 of 3 batches reached the target, three must; raise the target or train longer" in done.stdout
