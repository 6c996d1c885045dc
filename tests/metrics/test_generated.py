import numpy as np
import pytest
import torch

from metrics import MetricError
from metrics.generated import GeneratedFeatures, Latents, PathLengths, label_rows, slerp
from metrics.measures.perceptual_path import PathSampling
from models.stylegan2.sampler import StyleGAN2Sampler
from tests import tiny
from training.snapshot import pixels


@pytest.fixture(scope="module")
def sampler():
    network = tiny.networks(c_dim=3)[0].eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(1.0)
    return StyleGAN2Sampler(network)


LABELS = np.eye(3, dtype=np.float32)


def plain(images, start):
    """Instead of a detector: the pixels themselves."""
    return images.flatten(1).float().numpy()


def made(sampler, start, stop, seed=0, noise_mode="random"):
    producer = GeneratedFeatures(sampler, [plain], Latents(seed, LABELS), noise_mode)
    return producer.rows(start, stop)[0]


def test_an_image_is_the_same_in_any_batch(sampler):
    whole = made(sampler, 0, 13)
    for start, stop in ((0, 1), (3, 9), (5, 6), (12, 13)):
        np.testing.assert_array_equal(made(sampler, start, stop), whole[start:stop])


def test_random_noise_repeats_and_is_not_the_constant_one(sampler):
    np.testing.assert_array_equal(made(sampler, 0, 8), made(sampler, 0, 8))
    assert (made(sampler, 0, 8) != made(sampler, 0, 8, noise_mode="const")).any()
    assert (made(sampler, 0, 8) != made(sampler, 0, 8, seed=1)).any()


def test_latents_are_those_of_generate_py():
    G = tiny.networks()[0].eval()
    [rows] = GeneratedFeatures(StyleGAN2Sampler(G), [plain], Latents(0), "const").rows(0, 6)
    z = np.random.RandomState(5).randn(1, G.z_dim)
    with torch.no_grad():
        image = pixels(G(torch.from_numpy(z).float(), None, noise_mode="const"))
    assert np.abs(rows[5] - image.flatten()).max() <= 1, "except for rounding in another batch"


def test_labels_follow_the_data_set():
    latents = Latents(0, label_rows(np.array([0, 0, 0, 2]), 3))
    drawn = np.stack([latents.draw(i, [4])[1] for i in range(400)])
    assert drawn.sum(axis=0)[1] == 0 and abs(drawn.mean(axis=0)[0] - 0.75) < 0.08
    assert drawn.sum(axis=1).tolist() == [1] * 400


def test_labels_that_do_not_fit():
    vectors = np.ones([2, 5], np.float32)
    assert label_rows(vectors, 5) is vectors
    for labels, found in ((np.array([0, 3]), 4), (vectors, 5)):
        with pytest.raises(MetricError, match=f"with 3 labels, the data set has {found}"):
            label_rows(labels, 3)


class BadSampler:
    """Makes an image that is not finite for the latent of index 6."""

    z_dim = 4
    device = torch.device("cpu")

    def __init__(self, value):
        self.value = value
        self.bad = np.random.RandomState(6).randn(4)[0]

    def latents(self, z, c):
        return z

    def images(self, w, noise_mode):
        images = torch.zeros([len(w), 1, 8, 8])
        images[torch.isclose(w[:, 0], torch.tensor(self.bad).float()), 0, 3, 3] = self.value
        return images


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("start", [0, 5])
def test_an_image_that_is_not_finite_is_named(value, start):
    producer = GeneratedFeatures(BadSampler(value), [plain], Latents(0))
    with pytest.raises(MetricError, match="^generated image 6 is not finite"):
        producer.rows(start, 9)
    assert len(producer.rows(0, 6)[0]) == 6


def lpips_of_pixels(images, start):
    assert images.dtype == torch.float32
    return images.flatten(1).numpy() / 255


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("ends", [True, False])
def test_path_lengths(sampler, space, ends):
    sampling = PathSampling(space, ends, crop=False)
    producer = PathLengths(sampler, lpips_of_pixels, Latents(0, LABELS), sampling)
    [whole] = producer.rows(0, 9)
    assert whole.shape == (9, 1) and (whole > 0).all() and np.isfinite(whole).all()
    np.testing.assert_array_equal(producer.rows(5, 7)[0], whole[5:7])
    assert len(np.unique(whole)) == 9


def test_every_group_of_a_path_has_noise_of_its_own(sampler):
    before = {name: buffer.clone() for name, buffer in sampler.G.named_buffers()}
    sampling = PathSampling("w", ends=True, crop=False)
    producer = PathLengths(sampler, lpips_of_pixels, Latents(0, LABELS), sampling)
    noise = []
    for first in (0, 4, 0):
        producer.rows(first, first + 4)
        buffers = dict(producer._sampler.G.named_buffers())
        noise.append(torch.cat([b.flatten() for n, b in buffers.items() if "noise_const" in n]))
    assert len(noise[0]) and (noise[0] != noise[1]).all() and torch.equal(noise[0], noise[2])
    assert all(torch.equal(buffer, before[name]) for name, buffer in sampler.G.named_buffers())


class Linear:
    """w = z, image = (w0, w1, 0, ...): distances along paths are known in closed form."""

    z_dim = 4
    device = torch.device("cpu")

    def __init__(self, size=8):
        self.size = size

    def latents(self, z, c):
        return z

    def images(self, w, noise_mode, full_precision):
        images = torch.zeros([len(w), 1, self.size, self.size])
        images[:, 0, 0, 0] = w[:, 0]
        images[:, 0, -1, -1] = w[:, 1]
        middle = self.size // 2
        images[:, 0, middle, middle] = w[:, 2]
        return images

    def renew_noise(self):
        pass


def test_length_of_straight_paths_in_closed_form():
    sampling = PathSampling("w", ends=True, crop=False, epsilon=1e-2)
    [rows] = PathLengths(Linear(), lpips_of_pixels, Latents(0), sampling).rows(0, 5)
    for index in range(5):
        rng = np.random.RandomState(index)
        z0, z1 = rng.randn(4), rng.randn(4)
        expected = np.square((z1 - z0)[:3] / 2).sum()  # images span 2, pixels in 0..1
        assert rows[index, 0] == pytest.approx(expected, rel=1e-3)


def test_the_crop_is_the_face_of_ffhq():
    sampling = PathSampling("w", ends=True, crop=True, epsilon=1e-2)
    seen = []

    def feature_fn(images, start):
        seen.append(images.shape[2:])
        return lpips_of_pixels(images, start)

    [rows] = PathLengths(Linear(16), feature_fn, Latents(0), sampling).rows(0, 1)
    rng = np.random.RandomState(0)
    z0, z1 = rng.randn(4), rng.randn(4)
    assert rows[0, 0] == pytest.approx(np.square((z1 - z0)[2] / 2), rel=1e-3)
    assert set(seen) == {(8, 8)}


def test_large_images_are_shrunk_to_256():
    seen = []

    def feature_fn(images, start):
        seen.append(images.shape[2:])
        return lpips_of_pixels(images, start)

    PathLengths(Linear(512), feature_fn, Latents(0), PathSampling("w", True, False)).rows(0, 1)
    assert set(seen) == {(256, 256)}


def test_slerp():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    for t, degrees in ((0.0, 0), (1 / 3, 30), (1.0, 90)):
        expected = [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]
        np.testing.assert_allclose(slerp(a, b, torch.tensor([[t]]))[0], expected, atol=1e-6)
    assert torch.isfinite(slerp(a, a, torch.tensor([[0.5]]))).all()
