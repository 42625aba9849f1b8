"""`bigbatch check` on small loops: four right ones, which it must pass, and faults from public reports, which it must name."""

import pytest
import torch
from tests.check import loops

from bigbatch.check import check
from bigbatch.check.watch import _flat
from bigbatch.core.checks import UserError
from bigbatch.testing import assert_same_update

LIMIT_S = 120


@pytest.mark.parametrize("loop", [loops.right_samples, loops.right_tokens, loops.right_by_hand, loops.right_whole_batches])
def test_right_loops_pass(loop):
    report = check(loop, time_limit_s=LIMIT_S)
    assert report.same, report.sentence()
    assert report.sentence().startswith(f"{loop.__name__}: the same update in all 6 arrangements")
    assert [tuple(row.arrangement) for row in report.rows] == [(1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 2)]
    assert max(row.deviation.largest for row in report.rows) < 1e-12


EIGHT = {
    loops.mean_of_means: ("mean_of_means", "first in update 3; with whole batches only, the same"),
    loops.token_weighting: ("token_weighting", "with samples of one length only, the same"),
    loops.batch_norm: ("batch_norm", "with running statistics, the same"),
    loops.scheduler: ("scheduler", "with one call an update, the same; called 4 times in an update"),
    loops.clipping: ("clipping", "without clipping, the same; called 4 times in an update"),
    loops.world_size: ("scale", "0.25 times as long at 4 workers x 1 micro-batch"),
    loops.set_epoch: ("set_epoch", "with set_epoch, they don't"),
    loops.drop_last: ("drop_last", "samples left out of an epoch: 16 at 1 worker x 1 micro-batch, 4 at 1 worker x 2 micro-batches"),
}


@pytest.mark.parametrize("loop", EIGHT, ids=lambda loop: loop.__name__)
def test_eight_reported_faults_are_found_and_named(loop):
    name, evidence = EIGHT[loop]
    report = check(loop, time_limit_s=LIMIT_S)
    assert [culprit.name for culprit in report.culprits] == [name], report.sentence()
    assert evidence in report.sentence()
    assert "`" in report.culprits[0].remedy or name == "scale"


def test_the_world_size_is_named():
    report = check(loops.world_size, workers=[1, 2], time_limit_s=LIMIT_S)
    assert report.culprits[0].sentence == "gradients are divided by the number of workers: the loss is scaled twice"


MORE = {
    loops.dropout: ["dropout"],
    loops.accumulated_sum: ["mean_of_means", "scale"],
    loops.accumulated_sum_clipped: ["mean_of_means", "scale"],
    loops.no_all_reduce: ["no_all_reduce"],
    loops.clipped_before_the_all_reduce: ["clipping"],
    loops.schedule_of_the_loader: ["learning_rate"],
    loops.in_batch_negatives: ["interaction"],
    loops.last_window: ["last_window"],
    loops.update_per_micro_batch: ["update_per_micro_batch"],
    loops.seeded_by_rank: ["initial_weights"],
    loops.unseeded: ["randomness"],
    loops.no_sampler: ["shared_samples"],
    loops.batch_norm_and_clipping: ["batch_norm", "clipping"],
    loops.dropout_and_world_size: ["dropout", "scale"],
}


@pytest.mark.parametrize("loop", MORE, ids=lambda loop: loop.__name__)
def test_more_faults_alone_and_in_company(loop):
    report = check(loop, workers=[1, 2], time_limit_s=LIMIT_S)
    assert [culprit.name for culprit in report.culprits] == MORE[loop], report.sentence()


def test_what_is_allowed_is_taken_out():
    report = check(loops.dropout, workers=[1, 2], allow=["dropout"], time_limit_s=LIMIT_S)
    assert report.same
    assert report.notes == ("dropout was taken out, as allowed",)
    report = check(loops.dropout_and_world_size, workers=[1, 2], allow=["dropout"], time_limit_s=LIMIT_S)
    assert [culprit.name for culprit in report.culprits] == ["scale"]


def test_in_32_bits_where_64_cant_be():
    report = check(loops.in_32_bits, workers=[1, 2], time_limit_s=LIMIT_S)
    assert report.same
    assert report.tolerance == 1e-3
    assert "in 32 bits, since 64 can't be: RuntimeError" in report.notes[0]


def test_samples_that_fill_the_last_micro_batch_are_told():
    """As accelerate's even_batches does."""
    report = check(loops.filled_up, workers=[1, 2], time_limit_s=LIMIT_S)
    assert [culprit.name for culprit in report.culprits] == ["mean_of_means"]
    assert "16 samples are drawn once more, to fill the last micro-batches" in report.culprits[0].evidence


def test_of_pytest():
    report = assert_same_update(loops.right_samples, workers=[1, 2], time_limit_s=LIMIT_S)
    assert report.to_dict()["same"]
    with pytest.raises(AssertionError, match=r"set_epoch: a DistributedSampler without set_epoch .* Remedy: `for epoch"):
        assert_same_update(loops.set_epoch, workers=[1, 2], time_limit_s=LIMIT_S)


def test_a_loop_may_be_a_closure():
    seen = []

    def loop(probe):
        seen.append(probe)  # in another process
        loops.right_samples(probe)

    assert_same_update(loop, workers=[1], time_limit_s=LIMIT_S)
    assert seen == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": [1, 0]}, "workers = 0: must be from 1 to 16"),
        ({"allow": ["dropuot"]}, "unknown suspect 'dropuot': did you mean 'dropout'"),
        ({"time_limit_s": 0}, "time_limit_s = 0: must be a finite number above zero"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        check(loops.right_samples, **arguments)


def test_sparse_gradients_are_read():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3, 3])).sum().backward()
    assert _flat([embedding.weight.grad]).tolist() == [0, 0, 1, 1, 0, 0, 2, 2, 0, 0]
