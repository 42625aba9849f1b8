"""One owner of the divisor: however an update is cut, it is the same update."""

import pytest
import torch
from torch import nn

from bigbatch import Recipe, fit
from bigbatch.layers import GhostBatchNorm
from bigbatch.tasks import load_task
from bigbatch.train.update.gradient_accumulation import accumulate_gradients


class Squares:
    """Loss (w x)^2 per sample, to be worked by hand."""

    name, metric = "squares", "none"

    def losses(self, outputs, targets):
        return outputs.square().flatten()

    def scores(self, outputs, targets):
        return outputs.flatten()


def gradient(pieces):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    batches = [(torch.tensor(p, dtype=torch.float64)[:, None], torch.zeros(len(p))) for p in pieces]
    n = sum(map(len, pieces))
    loss = accumulate_gradients(model, Squares(), batches, divisor=n, precision="float64", device=torch.device("cpu"))
    return loss.item() / n, model.weight.grad.item()


def test_hand_worked():  # mean of 1, 4, 9, 16 = 7.5, its derivative at w = 1 is 15; a mean of the pieces' means would be 5.83
    assert gradient([[1.0, 2.0, 3.0, 4.0]]) == (7.5, 15.0)
    assert gradient([[1.0, 2.0, 3.0], [4.0]]) == (7.5, 15.0)
    assert gradient([[1.0], [2.0], [3.0], [4.0]]) == (7.5, 15.0)


def test_an_idle_pass_weighs_nothing_however_deep_the_model():
    """Also where this worker's part of the running statistics is zero, as on all but the first."""
    torch.manual_seed(0)
    layers = [layer for _ in range(60) for layer in (nn.Linear(4, 4), GhostBatchNorm(4, ghost_batch=8), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(4, 1))
    buffers = {name: buffer.zero_().clone() for name, buffer in model.named_buffers()}
    task, batch = Squares(), (torch.randn(2, 4), torch.zeros(2))
    loss = accumulate_gradients(model, task, [batch], divisor=8, precision="float32", device=torch.device("cpu"), idle=1)
    assert loss == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_task_that_returns_a_mean_is_refused():
    class Mean(Squares):
        def losses(self, outputs, targets):
            return outputs.mean()

    batch = [(torch.ones(3, 1), torch.zeros(3))]
    with pytest.raises(ValueError, match=r"task squares: losses have shape \(\): must be one per sample, \(3,\)"):
        accumulate_gradients(nn.Linear(1, 1), Mean(), batch, divisor=3, precision="float32", device=torch.device("cpu"))


def weights_after(tmp_path, name, changes, micro_batch):
    recipe = Recipe.named(name).replace(
        {
            "precision": "float64",
            "schedule.warmup.kind": "none",
            "budget.epochs": None,
            "optimizer.lr": 0.1,
            **changes,
            "batch.micro_batch": micro_batch,
        }
    )
    out = tmp_path / f"{name.replace('/', '-')}-{micro_batch}"
    fit(name, recipe, out=out, quiet=True, tensorboard=False, measure_test=False, evaluate_every=1e9)
    return torch.load(out / "last.pt", weights_only=True)["model"]


def assert_same(one, other, tolerance=1e-12):
    for key, value in one.items():
        if value.is_floating_point():
            assert (value - other[key]).abs().max() <= tolerance * max(1.0, value.abs().max()), key
        else:
            assert torch.equal(value, other[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/lstm"])
def test_one_piece_four_pieces_and_five_ragged_pieces_agree(tmp_path, name):
    """1 x 512, 4 x 128 and 4 x 110 + 72, after one update and one more (so that momentum counts), in float64, to 1e-12."""
    for updates in (1, 2):
        changes = {"batch.global_batch": 512, "budget.updates": updates}
        whole = weights_after(tmp_path / str(updates), name, changes, 512)
        moved = weights_after(tmp_path / "still", name, {**changes, "optimizer.lr": 1e-30}, 512) if updates == 1 else None
        if moved is not None:
            assert any((whole[k] - moved[k]).abs().max() > 1e-4 for k in whole)
        for micro_batch in (128, 110):
            assert_same(whole, weights_after(tmp_path / str(updates), name, changes, micro_batch))


@pytest.mark.slow
@pytest.mark.parametrize("global_batch", [512, 600])
def test_the_batch_norm_model_agrees_with_ghost_batches(tmp_path, global_batch):
    """Ghost batches of 128 (and of 88, the rest of 600): running statistics too."""
    changes = {"batch.global_batch": global_batch, "batch.ghost_batch": 128, "budget.updates": 2}
    whole = weights_after(tmp_path, "fashion_mnist/resnet8", changes, 640)
    for micro_batch in (128, 256):
        assert_same(whole, weights_after(tmp_path, "fashion_mnist/resnet8", changes, micro_batch))


def test_without_ghost_batches_the_cut_would_matter():
    """The guard of the test above: normalising over the forward pass does change the update."""
    task = load_task("fashion_mnist/resnet8")
    inputs, targets = task.splits().train.tensors
    gradients = []
    for size in (256, 128):
        torch.manual_seed(0)
        model = task.model().double()
        pieces = [(inputs[i : i + size].double(), targets[i : i + size]) for i in range(0, 256, size)]
        accumulate_gradients(model, task, pieces, divisor=256, precision="float64", device=torch.device("cpu"))
        gradients.append(model[0].weight.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4
