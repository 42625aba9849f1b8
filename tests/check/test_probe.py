"""What the loop is told, and the data set that it gets."""

import numpy as np
import pytest
import torch

from bigbatch.check.arrangement import WHOLE, Arrangement, Setup
from bigbatch.check.probe import Probe, probe

SETUP = Setup(WHOLE, 24, 16)


def sentence(length, total=8):
    return {"ids": [1, 2, 3, 4, 5, 6, 7, 8][:length] + [0] * (total - length), "mask": torch.arange(total) < length}


def test_numbers_multiply_to_the_batch():
    told = Probe(SETUP._replace(arrangement=Arrangement(2, 4)), 1)
    assert (told.global_batch, told.local_batch, told.micro_batch, told.accumulation, told.num_workers) == (24, 12, 3, 4, 2)


def test_samples_repeat_up_to_the_length_and_are_watched():
    data = Probe(SETUP).data([(torch.tensor([float(i)]), i) for i in range(10)])
    assert len(data) == 64
    assert [data[i][1] for i in (0, 9, 10, 63)] == [0, 9, 0, 3]
    assert [label for _, label in data[:3]] == [0, 1, 2]
    assert data[torch.tensor([1, 2])][0][1] == 1
    assert data.drawn == [0, 9, 10, 63, 0, 1, 2, 1, 2]
    with pytest.raises(IndexError):
        data[64]


def test_whole_batches_are_without_the_remainder():
    assert len(Probe(SETUP._replace(removed=frozenset({"mean_of_means"}))).data([0])) == 48


@pytest.mark.parametrize("float64", [True, False])
def test_floating_point_has_the_type_of_the_run(float64):
    told = Probe(SETUP._replace(float64=float64))
    sample = told.data([{"x": torch.ones(2, dtype=torch.float16), "y": (np.ones(2, np.float32), torch.tensor(1))}])[0]
    assert sample["x"].dtype == told.dtype
    assert sample["y"][0].dtype == (np.float64 if float64 else np.float32)
    assert sample["y"][1].dtype == torch.int64


def test_a_sample_is_augmented_alike_in_every_run_and_generators_go_on_as_if_it_was_not():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.randn(()), np.random.rand()

    data = Probe(SETUP).data(Noise())
    torch.manual_seed(5)
    first = data[1]
    after = torch.randn(())
    torch.manual_seed(5)
    assert torch.equal(torch.randn(()), after)
    assert data[1] == first
    assert data[2] != first


def test_samples_of_one_length_are_chosen():
    samples = [sentence(3), sentence(5), sentence(3), sentence(8)]
    assert Probe(SETUP).data(samples).num_forms() == 3
    data = Probe(SETUP._replace(removed=frozenset({"token_weighting"}))).data(samples)
    assert {int(data[i]["mask"].sum()) for i in range(len(data))} == {3}
    data = Probe(SETUP._replace(removed=frozenset({"interaction"}))).data(samples)
    assert data.num_forms() == 1


def test_classes_are_no_lengths():
    assert Probe(SETUP).data([(torch.randn(3), i % 4) for i in range(8)]).num_forms() == 1
    assert Probe(SETUP).data([(torch.randn(3), torch.tensor(i % 2)) for i in range(8)]).num_forms() == 1


def test_outside_the_checker_nothing_changes():
    told = probe(micro_batch=8, accumulation=4, epochs=3, seed=1)
    dataset = [1, 2]
    assert told.data(dataset) is dataset
    assert (told.global_batch, told.micro_batch, told.accumulation, told.epochs, told.seed, told.rank) == (32, 8, 4, 3, 1, 0)
