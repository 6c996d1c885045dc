import numpy as np
import torch

from torch_utils.image_values import denormalize, normalize, pixels, quantize


def test_pixels_go_there_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    images = normalize(values)
    assert images.dtype == torch.float32 and images[0] == -1 and images[-1] == 1
    assert torch.equal(quantize(images), values)
    torch.testing.assert_close(denormalize(images), values.float())
    assert torch.equal(normalize(values.double()), images)


def test_what_is_out_of_range_is_clamped():
    assert quantize(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_pixels_are_arrays_whatever_comes():
    x = torch.tensor([-9.0, -1.0, 0.0, 0.5, 1.0, 9.0])
    assert pixels(x).tolist() == [0, 0, 128, 191, 255, 255]
    assert pixels(x.numpy()).dtype == np.uint8
    same = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pixels(same), same)
    real = torch.arange(256) / 127.5 - 1  # what the networks see of a uint8 image
    assert np.abs(pixels(real).astype(int) - np.arange(256)).max() <= 1
