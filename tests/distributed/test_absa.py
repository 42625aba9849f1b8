"""ABSA over two workers: the run of one, whose batch norms have statistics to be made whole before examples and eigenvalues."""

import pytest
import torch
from tests.distributed.test_adversarial import job, started
from tests.train.adversarial.test_training import Stopped, assert_same, run, weights
from tests.train.control.test_curvature_batch import SMALL, Small

from bigbatch import Interrupted
from bigbatch.train.state.record import read_record

TASK = {"task": "tests.train.control.test_curvature_batch:Small"}
RULE = {"batch.rule.share": 0.4, "batch.rule.off_at": 1.0, "batch.rule.tolerance": 1e-6}
RECIPE = SMALL.replace({**RULE, "batch.ghost_batch": 10, "batch.micro_batch": 10, "budget.samples": 7 * 100 + 10})


def looks(out):
    return [line for line in read_record(out / "record.jsonl") if line["kind"] == "curvature"]


def test_two_workers_decide_and_train_as_one(tmp_path, monkeypatch):
    run(RECIPE, tmp_path / "one", Small())
    with monkeypatch.context() as patch:
        Stopped(patch, 7)
        with pytest.raises(Interrupted):
            run(RECIPE, tmp_path / "moved", Small())
    started(tmp_path / "ranks", 2, [TASK | job(tmp_path / "two", RECIPE), TASK | job(tmp_path / "moved", RECIPE, resume=True)])
    assert {line["global_batch"] for line in looks(tmp_path / "one")} == {20, 40, 80}
    for name in ("two", "moved"):
        assert_same(tmp_path / name, tmp_path / "one", atol=1e-9)
        for mine, theirs in zip(looks(tmp_path / name), looks(tmp_path / "one"), strict=True):
            assert abs(mine["eigenvalues"][0] / theirs["eigenvalues"][0] - 1) < 1e-6
            assert mine["global_batch"] == theirs["global_batch"]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "one").values())
