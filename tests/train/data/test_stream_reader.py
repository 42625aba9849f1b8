"""A stream is read in its order, once an epoch, by every worker; shares, cuts and resumed runs see the same samples."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from tests.distributed.train import stopped_after
from tests.structured_tasks import RECIPE, Endless, Sequences, Stream, TooShort, Words, WordStream

from bigbatch import fit
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import DataError, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.train.data.shares import partition
from bigbatch.train.data.stream import open_stream
from bigbatch.train.data.stream_reader import StreamReader
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.state.checkpoint import read_checkpoint

RANK = Path(__file__).parents[2] / "distributed" / "train.py"
QUIET = {"quiet": True, "tensorboard": False}
SHORT = RECIPE.replace({"batch.micro_batch": 5, "batch.global_batch": 20})  # 48 samples: the third update goes on into the next epoch


class Numbers(Stream):
    """0 to 47, and how often it was begun."""

    begun = 0

    def __init__(self):
        super().__init__(range(48))

    def __iter__(self):
        self.begun += 1
        return iter(self.sequences)


def numbers(clock, updates, rank, world):
    work = partition(rank, world, micro_batch=5, ghost_batch=None, equal_num_passes=True)
    stream = open_stream(SHORT, Numbers(), clock, updates, Ranks(rank, world), work)
    read = [inputs.tolist() for inputs, _ in stream]
    sizes = iter(read)
    return [list(itertools.chain(*(next(sizes) for _ in work(n).sizes)))[2 * work(n).idle :] for n in updates]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_stream_are_its_updates_in_order(world):
    updates = [20, 20, 20, 1, 7]
    by_rank = [numbers(Clock(0), updates, rank, world) for rank in range(world)]
    expected = [[i % 48 for i in range(start, start + n)] for start, n in zip((0, 20, 40, 60, 61), updates, strict=True)]
    assert [list(itertools.chain(*parts)) for parts in zip(*by_rank, strict=True)] == expected
    resumed = [numbers(Clock(40), updates[2:], rank, world) for rank in range(world)]
    assert resumed == [shares[2:] for shares in by_rank]


def test_it_is_begun_once_an_epoch():
    stream = Numbers()
    reader = StreamReader(stream)
    for start in (0, 20, 40, 12):
        assert reader.read(torch.arange(start, min(start + 20, 48))) == list(range(start, min(start + 20, 48)))
    assert stream.begun == 2


def weights_of(folder):
    return read_checkpoint(folder / "last.pt", torch.device("cpu"))["model"]


@pytest.mark.bit_for_bit
def test_a_run_is_that_of_plain_pytorch_and_resumes_bit_for_bit(tmp_path):
    torch.manual_seed(SHORT.seed)
    task, tokens = Words(), Sequences(48, 0).tokens
    model = task.model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for update in range(7):
        inputs, targets = task.collate([tokens[i % 48] for i in range(20 * update, 20 * update + 20)])
        optimizer.zero_grad()
        (task.losses(model(**inputs), targets).sum() / task.weights(targets).sum()).backward()
        optimizer.step()
    fit(WordStream(), SHORT, out=tmp_path / "straight", **QUIET)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights_of(tmp_path / "straight")[name], value, rtol=0, atol=1e-12)
    with stopped_after(4):
        fit(WordStream(), SHORT, out=tmp_path / "stopped", **QUIET)
    fit(WordStream(), SHORT, out=tmp_path / "stopped", resume=True, **QUIET)
    for name, value in weights_of(tmp_path / "straight").items():
        assert torch.equal(weights_of(tmp_path / "stopped")[name], value)


def test_two_workers_are_one(tmp_path):
    job = {"task": "tests.structured_tasks:WordStream", "recipe": SHORT.to_toml(), "out": str(tmp_path / "two")}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    run_ranks(RANK, 2, tmp_path, str(tmp_path / "jobs.json"))
    fit(WordStream(), SHORT, out=tmp_path / "one", **QUIET)
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], value, rtol=0, atol=1e-12)


def test_a_stream_is_evaluated_like_a_list():
    model = Words().model().double()
    results = [evaluate(model, task, splits_of(task).validation, recipe=SHORT) for task in (Words(), WordStream())]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("task", "changes", "error", "message"),
    [
        (Endless, {}, RecipeError, "the train data of task tests/words is a stream without a length.*define __len__"),
        (TooShort, {}, DataError, r"data set Stream: ended after 40 samples, and its len\(\) is 48.*correct its __len__"),
        (WordStream, {"augmentation": {"flip": True}}, RecipeError, "augment in the data set itself"),
    ],
)
def test_refused(task, changes, error, message):
    with pytest.raises(error, match=message):
        fit(task(), SHORT.replace(changes), **QUIET)
