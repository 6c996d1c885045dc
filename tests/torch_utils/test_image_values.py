import torch

from torch_utils.image_values import denormalize, normalize, quantize


def test_pixels_go_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    images = normalize(pixels)
    assert images.dtype == torch.float32 and images[0] == -1 and images[-1] == 1
    assert torch.equal(quantize(images), pixels)
    torch.testing.assert_close(denormalize(images), pixels.float())
    assert torch.equal(normalize(pixels.double()), images)


def test_what_is_out_of_range_is_clamped():
    assert quantize(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
