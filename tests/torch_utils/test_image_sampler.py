import copy

import pytest
import torch

from tests import tiny
from torch_utils.sampler import sampler_of


def test_a_generator_has_a_sampler():
    G = tiny.networks(c_dim=3)[0].eval()
    sampler = sampler_of(G)
    assert (sampler.z_dim, sampler.c_dim, sampler.img_resolution, sampler.img_channels) == (
        4,
        3,
        8,
        1,
    )
    z, c = torch.randn(2, 4), torch.eye(3)[:2]
    with torch.no_grad():
        w = sampler.latents(z, c, 0.5)
        assert w.shape == (2, *sampler.w_shape)
        images = sampler.images(w)
        assert torch.equal(images, G(z, c, truncation_psi=0.5, noise_mode="const"))
        assert torch.equal(sampler.images(w, full_precision=True), images)


def test_making_images_changes_nothing():
    G = tiny.networks()[0].train()
    before = G.mapping.w_avg.clone()
    sampler = sampler_of(G)
    sampler.images(sampler.latents(torch.randn(2, 4), torch.zeros(2, 0)))
    assert torch.equal(G.mapping.w_avg, before)


def test_noise_is_renewed_on_a_copy():
    G = tiny.networks()[0]
    before = [buffer.clone() for buffer in G.buffers()]
    renewed = copy.deepcopy(sampler_of(G))
    renewed.renew_noise()
    assert all(torch.equal(*pair) for pair in zip(G.buffers(), before, strict=True))
    changed = [
        name
        for (name, own), other in zip(renewed.G.named_buffers(), before, strict=True)
        if not torch.equal(own, other)
    ]
    assert changed and all(name.endswith("noise_const") for name in changed)


@pytest.mark.parametrize(
    ("network", "message"),
    [(tiny.networks()[1], "Discriminator is no generator"), (torch.nn.Linear(1, 1), "no family")],
)
def test_what_is_no_generator_has_none(network, message):
    with pytest.raises(LookupError, match=message):
        sampler_of(network)
