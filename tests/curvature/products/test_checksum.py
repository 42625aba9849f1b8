import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.curvature.products.checksum import checksum


@given(st.integers(1, 40), st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64, torch.int64]), st.data())
def test_checksums_tell_places_and_values_apart(n, dtype, data):
    t = torch.arange(n).to(dtype)
    i, j = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    swapped = t.clone()
    swapped[[i, j]] = t[[j, i]]
    assert (checksum(swapped) == checksum(t)).item() == (i == j)
    changed = t.clone()
    changed[i] += 1
    assert checksum(changed) != checksum(t)
    assert checksum(torch.cat([t, t])[n:]) == checksum(t), "a slice that begins anywhere"
    assert checksum(torch.stack([t, t], dim=1)[:, 0]) == checksum(t), "strides"


def test_black_and_white_images_that_change_places():
    images = (torch.rand(64, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    sums = {int(checksum(images.roll(k, dims=0))) for k in range(64)}
    assert len(sums) == 64


def test_several_tensors_and_how_many():
    a, b = torch.ones(2, 3), torch.tensor(5)
    assert checksum(a, b) != checksum(b, a)
    assert checksum(a, b) == checksum(a.to(memory_format=torch.contiguous_format), b.clone())
    assert len({int(checksum(torch.zeros(n))) for n in range(20)}) == 20
    assert checksum(torch.tensor([True]), torch.tensor([1j])) == checksum(torch.tensor([True]), torch.tensor([1j]))
    long = torch.arange(2**22 + 5)
    assert checksum(long) != checksum(long.roll(1))
