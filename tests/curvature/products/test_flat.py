import torch
from torch import nn

from bigbatch.curvature.products.flat import Flat


def test_there_and_back():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).double())
    flat = Flat(model)
    assert (flat.size, flat.dtype) == (9 + 6 + 4, torch.float64), "the widest"
    v = torch.arange(19.0, dtype=torch.float64)
    split = flat.split(v)
    assert [t.shape for t in split] == [p.shape for p in model.parameters()]
    assert [t.dtype for t in split] == [p.dtype for p in model.parameters()]
    assert torch.equal(flat.join(split), v)
    split[1] = None
    assert flat.join(split)[6:9].tolist() == [0, 0, 0]
