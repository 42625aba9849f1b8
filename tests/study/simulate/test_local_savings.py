import pytest

from bigbatch import Recipe, UserError, plan
from bigbatch.simulate.link import Link
from bigbatch.study.simulate.local_savings import savings

MLP = Recipe.named("fashion_mnist/mlp")
PLANNED = plan(MLP, global_batch=64 * 128, rule="local", workers=4)  # 1,075 updates of 512, weights averaged after every 16


def test_exchanges_by_hand():  # 550,000 samples: 68 periods of 8,192, 1,075 updates of 512, 4,297 of 128
    saved = savings(PLANNED)
    assert (saved.local.exchanges, saved.same_updates.exchanges, saved.tuned_updates.exchanges) == (68, 1075, 4297)
    assert saved.sentences() == ["exchanges of 4 workers: 68, where all-reduce makes 1,075 with these updates and 4,297 at the tuned batch"]


def test_bytes_by_hand():  # a ring of 4 sends 1.5 times what is averaged: weights and Muon's momentum here, gradients there
    saved = savings(PLANNED, model_bytes=1e6)
    assert saved.local.sent_bytes == pytest.approx(1075 / 16 * 1.5 * 2e6)
    assert saved.same_updates.sent_bytes == pytest.approx(1075 * 1.5e6)
    assert saved.tuned_updates.sent_bytes == pytest.approx(4297 * 1.5e6)
    assert saved.local.seconds is None
    kept = plan(MLP, global_batch=64 * 128, rule="local", workers=4, overrides={"comm.momentum": "keep"})
    assert savings(kept, model_bytes=1e6).local.sent_bytes == pytest.approx(1075 / 16 * 1.5e6)


def test_seconds_by_hand():
    """Bytes cost nothing, a message a second: of the all-reduces that are known, halving and doubling has the fewest, 4 in a row."""
    saved = savings(PLANNED, model_bytes=1e6, link=Link(1.0, 1e-15), step_s=0.5)
    assert saved.local.seconds == pytest.approx(1075 * (0.5 + 4 / 16), rel=1e-6)
    assert saved.same_updates.seconds == pytest.approx(1075 * (0.5 + 4), rel=0.2)  # some of it behind the backward pass
    assert saved.tuned_updates.seconds == pytest.approx(4297 * (0.5 / 4 + 4), rel=0.2)
    assert "time of the run, simulated: 806 s" in saved.sentences()[2]


def test_one_worker_sends_nothing():
    saved = savings(plan(MLP, global_batch=64 * 128, rule="local", workers=1), model_bytes=1e6, link=Link(1.0, 1e-9), step_s=0.5)
    assert saved.local.sent_bytes is None
    assert len(saved.sentences()) == 1


def test_another_rule_saves_nothing():
    with pytest.raises(UserError, match="a plan by the rule 'muon': exchanges after each update"):
        savings(plan(MLP, global_batch=1024, rule="muon"))
