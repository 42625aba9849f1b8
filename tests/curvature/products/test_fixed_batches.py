from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.curvature.products.fixed_batches import FixedBatches


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), micro_batch=st.none() | st.integers(1, 9))
def test_every_sample_once_and_in_order(sizes, micro_batch):
    x = torch.arange(float(sum(sizes)))
    pieces = list(FixedBatches([(part, -part) for part in torch.split(x, sizes)], micro_batch=micro_batch))
    assert torch.equal(torch.cat([p.inputs for p in pieces]), x)
    assert torch.equal(torch.cat([p.targets for p in pieces]), -x)
    assert [p.number for p in pieces] == list(range(len(pieces)))
    assert all(len(p.inputs) == p.samples <= (micro_batch or 7) for p in pieces)


def test_tuples_lists_and_dicts_keep_their_kind():
    class Point(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    batch = ({"a": [torch.arange(3)], "b": "text"}, Point(torch.arange(3), torch.arange(3)))
    first, second = FixedBatches([batch], micro_batch=2)
    assert (first.inputs["b"], first.inputs["a"][0].tolist(), second.inputs["a"][0].tolist()) == ("text", [0, 1], [2])
    assert isinstance(second.targets, Point)
    assert second.targets.y.tolist() == [2]
