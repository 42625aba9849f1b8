import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.matrices import LAYOUTS, as_matrices, from_matrices, matrix_shape

sizes = st.integers(1, 4)


@given(layout=st.sampled_from(LAYOUTS), n=sizes, a=sizes, b=sizes, e=sizes, k=sizes, three=st.booleans())
def test_there_and_back(layout, n, a, b, e, k, three):
    shape = {"rows": (n * a, b, k), "columns": (e, b, n * a) if three else (b, n * a), "stack": (e, n * a, b), "transposed": (n * b, a, k)}
    tensor = torch.randn(shape[layout])
    stack = as_matrices(tensor, n, layout)
    assert stack.shape == matrix_shape(tensor.shape, n, layout)
    assert stack.numel() == tensor.numel()
    assert torch.equal(from_matrices(stack, tensor.shape, n, layout), tensor)


def test_each_layout_is_what_the_layer_computes():
    """Each matrix times the inputs is what torch's own operation gives."""
    x = torch.randn(5, 6, dtype=torch.float64)
    qkv = torch.randn(6, 12, dtype=torch.float64)  # Conv1D: x @ w, split into three by columns
    want = (x @ qkv).split(4, dim=1)
    torch.testing.assert_close([x @ m.mT for m in as_matrices(qkv, 3, "columns")], list(want))
    experts = torch.randn(2, 8, 6, dtype=torch.float64)  # gate and up of two experts, applied by F.linear
    got = [x @ m.mT for m in as_matrices(experts, 2, "stack")]
    torch.testing.assert_close(got, [part for w in experts for part in F.linear(x, w).chunk(2, dim=-1)])
    inputs_first = experts.mT.contiguous()
    torch.testing.assert_close(list(as_matrices(inputs_first, 2, "columns")), list(as_matrices(experts, 2, "stack")))
    image = torch.randn(1, 6, 1, 1, dtype=torch.float64)  # one pixel: a transposed convolution writes its kernel around it
    kernel = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    made = F.conv_transpose2d(image, kernel, groups=2)[0]  # 4 channels
    for group, m in enumerate(as_matrices(kernel, 2, "transposed")):  # (2 outputs, 3 inputs x 9)
        part = torch.einsum("aik,i->ak", m.view(2, 3, 9), image[0, 3 * group : 3 * group + 3, 0, 0])
        torch.testing.assert_close(part.view(2, 3, 3), made[2 * group : 2 * group + 2])
    grouped = torch.randn(4, 3, 1, 1, dtype=torch.float64)  # two groups of 2 outputs and 3 inputs
    want = F.conv2d(image, grouped, groups=2).view(2, 2)
    got = torch.stack([m @ image.view(2, 3)[i] for i, m in enumerate(as_matrices(grouped, 2, "rows"))])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("shape", "n", "layout", "message"),
    [
        ((3, 2), 2, "rows", "matrices = 2: must divide the 3 rows of shape \\(3, 2\\)"),
        ((3, 5), 2, "columns", "matrices = 2: must divide the 5 columns"),
        ((3, 2), 1, "stack", "layout = 'stack': does not fit shape"),
        ((3,), 1, "rows", "does not fit"),
        ((3, 2), 1, "colums", "unknown layout 'colums': did you mean 'columns'"),
    ],
)
def test_bad_layouts(shape, n, layout, message):
    with pytest.raises(UserError, match=message):
        matrix_shape(shape, n, layout)
