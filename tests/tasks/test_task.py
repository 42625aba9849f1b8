import subprocess
import sys

import pytest
import torch
from tests.limits import LIMIT_S

from bigbatch import UserError
from bigbatch.recipe import Recipe, recipe_names
from bigbatch.recipe.about import how_to_get, needs_of, seconds_of
from bigbatch.tasks import SHIPPED, Task, load_task
from bigbatch.tasks.classification import cross_entropy_per_sample, is_correct
from bigbatch.tasks.models import RowLSTM, ViT, cnn, mlp, resnet8
from bigbatch.tasks.models.resnet8 import ResidualBlock


def test_every_shipped_task_has_a_recipe_and_is_a_task():
    assert set(SHIPPED) <= set(recipe_names())
    for name in recipe_names():
        recipe = Recipe.named(name)
        task = load_task(recipe.task)
        assert isinstance(task, Task)
        assert task.name == recipe.task
        assert recipe.task == name or name.startswith(f"{recipe.task}-{recipe.optimizer.name}")
        task.model(**recipe.model)


def test_what_every_recipe_needs_and_how_long_it_takes_is_said():
    for name in recipe_names():
        assert seconds_of(name) > 0
        assert needs_of(name) in {*how_to_get(), "nothing: shipped"}


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (mlp([784, 256, 128, 10]), (2, 1, 28, 28), 235_146),
        (cnn(), (2, 1, 28, 28), 206_922),
        (resnet8(), (2, 1, 28, 28), 77_754),
        (RowLSTM(), (2, 1, 28, 28), 82_186),
        (ViT(patch=7, width=64, num_blocks=3, num_heads=4), (2, 1, 28, 28), 153_738),
    ],
    ids=["mlp", "cnn", "resnet8", "lstm", "vit"],
)
def test_models(model, shape, parameters):
    assert model(torch.zeros(shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_zero_gammas_make_blocks_the_identity_of_their_shortcut():
    torch.manual_seed(0)
    block = next(m for m in resnet8(zero_init_last_gamma=True).eval().modules() if isinstance(m, ResidualBlock))
    x = torch.randn(2, 16, 5, 5).relu()
    assert torch.equal(block(x), x)
    plain = next(m for m in resnet8(zero_init_last_gamma=False).modules() if isinstance(m, ResidualBlock))
    assert plain.bn2.weight.min() == 1


def test_losses_and_scores_by_hand():  # logits (0, ln 3): probabilities 1/4 and 3/4
    outputs = torch.tensor([[0.0, 3.0]]).log().nan_to_num(neginf=0.0) * torch.tensor([[0.0, 1.0]])
    assert cross_entropy_per_sample(outputs, torch.tensor([1])).item() == pytest.approx(0.28768207)
    assert cross_entropy_per_sample(outputs.bfloat16(), torch.tensor([0])).dtype == torch.float32
    assert is_correct(outputs, torch.tensor([1])).tolist() == [1.0]
    assert is_correct(outputs, torch.tensor([0])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnist/mpl", "unknown task 'fashion_mnist/mpl': did you mean 'mlp|unknown task 'fashion_mnist/mpl': did you mean"),
        ("mnist", "unknown task 'mnist': .*known: digits/mlp, .*your own is given as module:Class"),
        ("no_such_module:Task", "task 'no_such_module:Task': no module named 'no_such_module' here or on the Python path"),
        ("no_such_package.module:Task", "task 'no_such_package.module:Task': no module named 'no_such_package' here"),
        ("bigbatch.tasks.digits_mpl:DigitsMLP", "no module named 'bigbatch.tasks.digits_mpl' here"),
        ("bigbatch.tasks.digits_mlp:DigitsMPL", "unknown class in bigbatch.tasks.digits_mlp 'DigitsMPL': did you mean 'DigitsMLP'"),
        ("fractions:Fraction", "task 'fractions:Fraction': lacks name, metric, splits, model, losses, scores; see examples"),
    ],
)
def test_refuses(name, message):
    with pytest.raises(UserError, match=message):
        load_task(name)


def test_an_import_error_inside_the_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_task.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_task("broken_task:Task")


def test_a_narrow_resnet_trains_on_any_processor():
    """In a process of its own: channels-last, oneDNN's AVX2 kernel of a narrow shortcut corrupted memory, and the process died."""
    program = (
        "import torch; from bigbatch.tasks.models import resnet8; torch.set_num_threads(1); net = resnet8(width=4)\n"
        "for _ in range(20): net(torch.randn(32, 1, 28, 28)).square().mean().backward()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
