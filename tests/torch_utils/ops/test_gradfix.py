import pytest
import torch
import torch.nn.functional as nnf

from tests.golden_cases import relative_error
from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.grid_sample_gradfix import grid_sample


def _images_and_grid(dtype=torch.float64):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True)
    return images, torch.rand(2, 6, 7, 2, dtype=dtype) * 2.6 - 1.3  # some positions lie outside


def test_grid_sample_equals_pytorch_with_its_gradient():
    images, grid = _images_and_grid()
    y = grid_sample(images, grid)
    expected = nnf.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, images, dy)
    (expected_dx,) = torch.autograd.grad(expected, images, dy)
    assert torch.equal(y, expected)
    assert relative_error(dx, expected_dx) <= 1e-12


def test_grid_sample_differentiates_twice():
    images, grid = _images_and_grid()
    # The square makes the second derivative differ from zero.
    assert torch.autograd.gradcheck(lambda v: grid_sample(v, grid).square(), (images,))
    assert torch.autograd.gradgradcheck(lambda v: grid_sample(v, grid).square(), (images,))


def test_grid_sample_gives_the_gradient_of_the_grid():
    images, grid = _images_and_grid()
    grid.requires_grad_()
    y = grid_sample(images.detach(), grid)
    (dgrid,) = torch.autograd.grad(y.sum(), grid)
    expected = nnf.grid_sample(
        images.detach(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    assert torch.equal(dgrid, torch.autograd.grad(expected.sum(), grid)[0])
    assert dgrid.any()


def test_plain_convolutions_take_pytorchs_arguments():
    x, w, b = torch.randn(1, 4, 6, 6), torch.randn(6, 2, 3, 3), torch.randn(6)
    y = conv2d_gradfix.conv2d(input=x, weight=w, bias=b, stride=2, padding=1, dilation=1, groups=2)
    assert torch.equal(y, nnf.conv2d(x, w, b, 2, 1, 1, 2))
    w = torch.randn(4, 3, 3, 3)
    y = conv2d_gradfix.conv_transpose2d(
        input=x, weight=w, bias=b, stride=2, padding=1, output_padding=1, groups=2, dilation=1
    )
    assert torch.equal(y, nnf.conv_transpose2d(x, w, b, 2, 1, 1, 2, 1))


@pytest.mark.parametrize(
    "padding", [(0, 0, 0, 0), (1, 1, 2, 2), (1, 2, 0, 3), (-1, 2, -2, -1), (-9, 8, 9, -7)]
)
@pytest.mark.parametrize("up", [(1, 1), (2, 3), (4, 1)])
def test_padded_and_upsampled_convolutions_equal_explicit_zeros(padding, up):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    w = torch.randn(6, 2, 3, 2, dtype=torch.float64)
    image = torch.zeros(2, 4, 6 * up[1], 7 * up[0], dtype=torch.float64)
    image[:, :, :: up[1], :: up[0]] = x
    grown = nnf.pad(image, [max(p, 0) for p in padding])
    expected = nnf.conv2d(nnf.pad(grown, [min(p, 0) for p in padding]), w, groups=2)
    upsampled = conv2d_gradfix.conv2d_upsampled(x, w, up, padding, groups=2)
    padded = conv2d_gradfix.conv2d_padded(image, w, padding, groups=2)
    assert relative_error(upsampled, expected) <= 1e-12
    assert relative_error(padded, expected) <= 1e-12
    strided = conv2d_gradfix.conv2d_padded(image, w, padding, stride=(3, 2), groups=2)
    assert relative_error(strided, expected[:, :, ::3, ::2]) <= 1e-12
