"""A loop of Accelerate against a plain one: noise, rates, one process and two, a scheduler that is prepared or not; misuse is named."""

import json

import pytest
import torch
from tests.integrations.accelerate_run import data_and_model, recipe_of, run
from tests.integrations.processes import torchrun

from bigbatch import Clock, UserError, build_optimizer
from bigbatch.noise import NoiseScaleMonitor
from bigbatch.schedules.from_recipe import schedule_of


@pytest.fixture(autouse=True)
def _no_accelerator_left():
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def own_loop():
    """Accelerate divides by its number of passes also where an update has fewer: the last of an epoch has half the weight."""
    recipe, (data, model) = recipe_of(), data_and_model()
    optimizer, schedule, clock = build_optimizer(model, recipe), schedule_of(recipe), Clock()
    monitor, rates = NoiseScaleMonitor(model, population=40), []
    for _ in range(3):
        for start, end in ((0, 16), (16, 32), (32, 40)):
            for i in range(start, end, 4):
                x, y = data[i : i + 4]
                ((model(x) - y).square().mean() / 4).backward()
                monitor.micro_batch(4, divisor=16)
            monitor.update()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
            rates.append(recipe.optimizer.lr * schedule(clock))
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.step()
            optimizer.zero_grad()
            clock = clock.after(end - start)
    return {"rates": rates, "measured": [row[:2] for row in monitor.state_dict()["measured"].tolist()]}


def compare(found):
    own = own_loop()
    assert found["rates"] == pytest.approx(own["rates"], rel=1e-12, abs=1e-15)
    for mine, theirs in zip(found["measured"], own["measured"], strict=True):
        assert mine[:2] == pytest.approx(theirs, rel=1e-9)
    assert found["clock"] == [120, 9]


@pytest.mark.parametrize("prepared", [True, False])
def test_one_process(prepared):
    compare(run(prepared))


@pytest.mark.parametrize("prepared", ["prepared", "bare"])
def test_two_processes(prepared, tmp_path):
    torchrun("tests.integrations.accelerate_run", tmp_path / "facts", prepared, "right", folder=tmp_path)
    for rank in range(2):
        compare(json.loads((tmp_path / f"facts.{rank}").read_text()))


def test_processes_with_unlike_numbers_of_samples_have_one_clock(tmp_path):
    torchrun("tests.integrations.accelerate_run", tmp_path / "facts", "prepared", "uneven", folder=tmp_path)
    one, other = (json.loads((tmp_path / f"facts.{rank}").read_text()) for rank in range(2))
    assert one["rates"] == other["rates"]
    assert one["clock"] == other["clock"] == [3 * 38, 9]


def test_two_processes_count_twice_with_torchs_scheduler_and_that_is_named(tmp_path):
    torchrun("tests.integrations.accelerate_run", tmp_path / "facts", "prepared", "torch", folder=tmp_path)
    refused = json.loads((tmp_path / "facts.1").read_text())["refused"]
    assert refused.startswith(
        "StepLR: counted 2 updates where the optimizer made 1: accelerator.prepare() steps it once per process (2); "
        "use bigbatch.build_scheduler"
    )


def test_join_of_uneven_inputs_keeps_the_schedule_and_is_not_measured(tmp_path):
    torchrun("tests.integrations.accelerate_run", tmp_path / "facts", "prepared", "join", folder=tmp_path)
    short, long = (json.loads((tmp_path / f"facts.{rank}").read_text()) for rank in range(2))
    assert short["refused"].startswith("join_uneven_inputs: a process that is out of samples would be waited for")
    assert (len(short["rates"]), len(long["rates"])) == (3, 5)
    recipe = recipe_of()
    expected = [recipe.optimizer.lr * schedule_of(recipe)(Clock(16 * i, i)) for i in range(5)]
    assert long["rates"] == pytest.approx(expected, rel=1e-12)
    assert short["rates"] == long["rates"][:3]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch's own warning, and only that
@pytest.mark.parametrize(
    ("how", "prepared", "message"),
    [
        ("torch", False, "StepLR: counted 1 updates where the optimizer made 0: it is stepped at every pass"),
        ("never", True, "ClockLR: counted 0 updates where the optimizer made 1; call scheduler.step"),
        ("global_batch", True, r"global_batch = 4: the first update had 16 samples \(1 processes x 4 passes\)"),
    ],
)
def test_a_clock_that_runs_wrong_is_refused(how, prepared, message):
    with pytest.raises(UserError, match=message):
        run(prepared, how)


def test_goes_into_accelerates_checkpoints(tmp_path):
    from accelerate import Accelerator

    from bigbatch.integrations.accelerate import AccelerateMonitor

    accelerator = Accelerator(cpu=True)
    _, model = data_and_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    monitor = AccelerateMonitor(accelerator, model, optimizer, layers=True)
    accelerator.register_for_checkpointing(monitor)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.load_state(str(tmp_path / "state"))
    with pytest.raises(UserError, match="none of which tells signal from noise"):
        monitor.estimate()
