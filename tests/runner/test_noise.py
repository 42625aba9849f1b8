"""The noise scale of a run of a function, as of one of a task."""

import pytest
import torch
import torch.nn.functional as F
from tests.runner import digits_own, scripts
from tests.runner.scripts import RECIPE, section

import bigbatch
from bigbatch import Recipe, UserError
from bigbatch.core.tensors.alignment import aligned
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.runner import CommandRunner, FunctionRunner
from bigbatch.study.noise import measure_noise
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import sample_indices

DIGITS = Recipe.named("digits/mlp").replace({"budget": {"updates": 60}, "batch.micro_batch": 8, "model.hidden": 16})


def trains(recipe, run, every=1):
    task = load_task("digits/mlp")
    torch.manual_seed(recipe.seed)
    model = task.model(**recipe.model)
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    monitor = NoiseScaleMonitor(model, population=recipe.num_train_samples)
    run.noise(monitor)
    for update, start in enumerate(range(0, recipe.total_samples, recipe.batch.global_batch), 1):
        count = min(recipe.batch.global_batch, recipe.total_samples - start)
        index = sample_indices(recipe.seed, recipe.num_train_samples, start, count)
        for piece in index.split(recipe.batch.micro_batch):
            inputs, targets = (t[piece] for t in task.splits().train.tensors)
            losses = F.cross_entropy(model(aligned(inputs.float())), targets, reduction="none")
            losses.backward(torch.full_like(losses, 1 / count))
            monitor.micro_batch(len(piece), divisor=count)
        monitor.update()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if update % every == 0 or start + count == recipe.total_samples:
            run.log(updates=update, loss=losses.mean().item())


def every_tenth(recipe, run):
    trains(recipe, run, every=10)


@pytest.mark.parametrize("function", [trains, every_tenth])
def test_a_function_s_is_that_of_the_task(tmp_path, function):
    of_task = measure_noise("digits/mlp", DIGITS, out=tmp_path / "task", quiet=True)
    of_function = measure_noise(FunctionRunner(function, metric=digits_own.ACCURACY, name="digits/mlp"), DIGITS, out=tmp_path / "function")
    for one, other in zip(of_task.stretches, of_function.stretches, strict=True):
        assert (one.first, one.last) == (other.first, other.last)
        assert one.whole.noise_scale == pytest.approx(other.whole.noise_scale, rel=1e-6)
        assert one.whole.noise == pytest.approx(other.whole.noise, rel=1e-6)


def test_refused(tmp_path):
    with pytest.raises(UserError, match=r"did not record noise from its start on: give its monitor to run.noise before the first log"):
        measure_noise(scripts.trains, RECIPE.replace({"budget.epochs": 0.1}), out=tmp_path)
    with pytest.raises(UserError, match="a command can't tell noise scales; measure in a function"):
        measure_noise(CommandRunner(section(), base=tmp_path), RECIPE, out=tmp_path)
