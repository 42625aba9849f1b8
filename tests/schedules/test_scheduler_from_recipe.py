import pytest
import torch

from bigbatch import Recipe, UserError, build_scheduler

GRADUAL = {"schedule.warmup.kind": "gradual", "schedule.warmup.epochs": 2}


def recipe(**changes):
    plain = {"schedule.warmup.kind": "none", "schedule.decay.kind": "constant", "num_train_samples": 1000, "budget.epochs": 10}
    return Recipe.named("digits/mlp").replace({**plain, **changes})


def scheduler_of(recipe):
    return build_scheduler(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4), recipe)


def test_a_scheduler_follows_the_schedule_in_updates_of_the_global_batch():
    settings = {"batch.global_batch": 500, "schedule.decay.kind": "linear", "schedule.decay.final_factor": 0.2}
    scheduler = scheduler_of(recipe(**GRADUAL, **settings))
    rates = []
    for _ in range(30):  # 20 are the run
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    assert [rates[update] for update in (0, 2, 4, 12, 20, 29)] == pytest.approx([0, 0.2, 0.4, 0.24, 0.08, 0.08])


REFUSED = {
    "autowu": ({"schedule.warmup": {"kind": "autowu"}}, 'schedule.warmup.kind = "autowu": follows the losses'),
    "a measured batch": ({"batch.rule": {"kind": "norm_test"}}, 'batch.rule.kind = "norm_test": sets the batch'),
    "a scheduled batch": ({"batch.rule": {"kind": "increase_batch"}}, 'batch.rule.kind = "increase_batch": sets the batch'),
    "a parameter server": ({"comm.kind": "parameter_server"}, 'comm.kind = "parameter_server": its server sets the rate'),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_rate_that_depends_on_more_than_samples_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        scheduler_of(recipe(**changes))


@pytest.mark.parametrize("change", [{"batch.rule": None}, {"comm.kind": "all_reduce"}])
def test_the_remedies_of_the_messages_work(change):
    refused = recipe(**{"batch.rule": {"kind": "norm_test"}} if "batch.rule" in change else {"comm.kind": "parameter_server"})
    assert scheduler_of(refused.replace(change)).global_batch == 32


def test_other_ways_of_going_together_follow_the_same_schedule():
    assert scheduler_of(recipe(**{"comm.kind": "local_sgd"})).global_batch == 32
