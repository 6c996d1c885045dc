import pytest
import torch

from tests.golden_cases import relative_error
from torch_utils.ops.fma import fma

SHAPES = [
    ([2, 3, 4, 4], [2, 3, 1, 1], [2, 1, 4, 4]),
    ([2, 3, 1, 1], [3, 4, 1], [1]),
    ([4], [4], [3, 4]),
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_value_and_dtype(shapes, dtype):
    a, b, c = (torch.randn(shape).to(dtype) for shape in shapes)
    y = fma(a, b, c)
    assert y.dtype == dtype
    expected = a.double() * b.double() + c.double()
    # One rounding, of a sum whose terms may cancel.
    assert relative_error(y, expected) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shapes", SHAPES)
def test_differentiates_twice(shapes):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(fma, inputs)
    assert torch.autograd.gradgradcheck(fma, inputs)
