import pytest
import torch
from torch.utils.data import TensorDataset

from bigbatch import Recipe, fit
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import RecipeError
from bigbatch.core.clock import Clock
from bigbatch.train.data.augmentation import Views, crop_and_flip, epoch_views
from bigbatch.train.data.input_range import data_range
from bigbatch.train.data.shares import work_of
from bigbatch.train.data.stream import open_stream

RECIPE = Recipe.named("digits/mlp").replace(
    {"num_train_samples": 60, "batch.global_batch": 20, "augmentation": {"padding": 2, "flip": True}}
)
IMAGES = torch.arange(60 * 2 * 4 * 3, dtype=torch.float32).reshape(60, 2, 4, 3)
DATA = TensorDataset(IMAGES, torch.arange(60))


def by_loops(image, view, padding, fill):
    """One image, a pixel at a time."""
    channels, height, width = image.shape
    row, column, mirrored = view
    out = torch.empty_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                y, x = i + row - padding, (width - 1 - j if mirrored else j) + column - padding
                out[c, i, j] = image[c, y, x] if 0 <= y < height and 0 <= x < width else fill[c]
    return out


def test_equals_a_loop_over_pixels():
    views = epoch_views(0, 3, 60, 2)
    fill = torch.tensor([-5.0, -7.0])
    got = crop_and_flip(IMAGES, views, padding=2, flip=True, fill=fill[:, None, None])
    for image, view, result in zip(IMAGES, views.tolist(), got, strict=True):
        assert torch.equal(result, by_loops(image, view, 2, fill))
    unmirrored = torch.cat([views[:, :2], torch.zeros(60, 1, dtype=torch.int64)], dim=1)
    assert torch.equal(
        crop_and_flip(IMAGES, views, padding=2, flip=False, fill=fill[:, None, None]),
        crop_and_flip(IMAGES, unmirrored, padding=2, flip=True, fill=fill[:, None, None]),
    )


def test_views_are_drawn_evenly_and_anew_in_each_epoch():
    views = epoch_views(1, 0, 50_000, 4)
    for column, kinds in ((0, 9), (1, 9), (2, 2)):
        counts = torch.bincount(views[:, column], minlength=kinds).double()
        expected = 50_000 / kinds
        assert len(counts) == kinds
        assert float((counts - expected).square().sum() / expected) < 40  # chi-squared, 8 degrees: p < 1e-5
    assert not torch.equal(views, epoch_views(1, 1, 50_000, 4))
    assert not torch.equal(views, epoch_views(2, 0, 50_000, 4))


def test_the_same_views_whoever_reads_them_and_wherever_the_run_stands():
    def read(clock, updates, rank, world, micro_batch):
        def work(num_samples):
            return work_of(num_samples, rank, world, micro_batch=micro_batch, ghost_batch=None)

        return torch.cat([inputs for inputs, _ in open_stream(RECIPE, DATA, clock, updates, Ranks(rank, world), work)])

    whole = read(Clock(), [20] * 6, 0, 1, 20)  # two epochs
    assert torch.equal(read(Clock(), [20] * 6, 0, 1, 7), whole)
    assert torch.equal(read(Clock(40, 2), [20] * 4, 0, 1, 20), whole[40:])
    shares = [read(Clock(), [20] * 6, rank, 3, 4) for rank in range(3)]
    sizes = [[6, 7, 7][rank] for rank in range(3)]
    parts = [share.split(size) for share, size in zip(shares, sizes, strict=True)]
    assert torch.equal(torch.cat([part[u] for u in range(6) for part in parts]), whole)
    assert torch.equal(whole[:20], read(Clock(), [20], 0, 1, 20))
    assert not torch.equal(whole[:60].sort(0).values, whole[60:].sort(0).values)
    plain = RECIPE.replace({"augmentation": None})
    work = work_of(20, 0, 1, micro_batch=20, ghost_batch=None)
    (images, targets), *_ = open_stream(plain, DATA, Clock(), [20], Ranks(), lambda _: work)
    assert torch.equal(images, IMAGES[targets])


def test_idle_workers_keep_their_place():
    def work(num_samples):
        return work_of(num_samples, 0, 3, micro_batch=4, ghost_batch=None, equal_num_passes=True)

    pieces = list(open_stream(RECIPE, DATA, Clock(), [2, 20], Ranks(0, 3), work))  # of 2 samples, the first worker has none
    sizes = [len(targets) for _, targets in pieces]
    assert sizes == [2, 4, 2]
    plain = torch.cat([targets for _, targets in list(pieces)[1:]])
    views = epoch_views(0, 0, 60, 2)[2:8]
    fill = data_range(IMAGES).low
    assert torch.equal(torch.cat([x for x, _ in pieces[1:]]), crop_and_flip(IMAGES[plain], views, padding=2, flip=True, fill=fill))


def test_trains_on_shifted_images_and_is_evaluated_on_plain_ones(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 2, "batch.micro_batch": 32})
    plain = fit("digits/mlp", recipe, quiet=True, tensorboard=False)
    augmented = fit("digits/mlp", recipe.replace({"augmentation.padding": 1}), quiet=True, tensorboard=False)
    assert plain.test_loss != augmented.test_loss
    assert augmented.test_score > 0.8


def test_a_range_for_each_channel_of_images():
    low, high = data_range(IMAGES)
    assert low.flatten().tolist() == [0.0, 12.0]
    assert high.flatten().tolist() == [59 * 24 + 11, 59 * 24 + 23]
    assert low.shape == (2, 1, 1)


def test_what_can_not_be_augmented_is_refused():
    with pytest.raises(RecipeError, match=r"padding = 0 and flip = false: changes nothing"):
        RECIPE.replace({"augmentation": {}})
    with pytest.raises(RecipeError, match=r'\[augmentation\] with comm.kind = "parameter_server"'):
        RECIPE.replace({"comm.kind": "parameter_server"})
    flat = RECIPE.replace({"num_train_samples": 60})
    with pytest.raises(RecipeError, match=r"inputs of shape \(60, 24\) are no images"):
        Views(flat.augmentation, flat, TensorDataset(IMAGES.flatten(1), torch.arange(60)))
    with pytest.raises(RecipeError, match="the training set is not in memory"):
        Views(flat.augmentation, flat, [(IMAGES[0], 0)])
