import copy

import pytest
import torch

import legacy
from tests import tiny
from training.networks import Conv2dLayer, Discriminator
from training.run.snapshot_file import save_snapshot
from training.spectral_norm import add_spectral_norm, without_spectral_norm


def normalised(**kwargs):
    torch.manual_seed(0)
    D = Discriminator(0, 8, 1, channel_base=64, **kwargs)
    add_spectral_norm(D)
    return D.train()


def run(D, times=1):
    torch.manual_seed(1)
    images = torch.rand(4, 1, 8, 8)
    for _ in range(times):
        scores = D(images, None)
    return scores


def largest_singular_values(D):
    """Of what meets the features in each 3x3 convolution."""
    D.eval()
    layers = [m for m in D.modules() if isinstance(m, Conv2dLayer) and m.weight.shape[2] == 3]
    return [
        torch.linalg.matrix_norm((m.weight * m.weight_gain).flatten(1), ord=2).item()
        for m in layers
    ]


def test_the_effective_weights_have_norm_one():
    D = normalised()
    run(D, times=100)
    assert largest_singular_values(D) == pytest.approx([1, 1, 1], rel=1e-3)
    with torch.no_grad():
        for p in D.parameters():
            p.mul_(3)
    assert largest_singular_values(D) == pytest.approx([1, 1, 1], rel=1e-3), "whatever Adam does"


def test_power_iterations_happen_in_training_mode_alone():
    D = normalised()

    def vectors():
        return [b.clone() for name, b in D.named_buffers() if name.endswith(("_u", "_v"))]

    before = vectors()
    run(D.eval())
    assert all(map(torch.equal, before, vectors()))
    run(D.train())
    assert not any(map(torch.equal, before, vectors()))


def test_other_layers_and_frozen_ones_stay_as_they_are():
    D = normalised(block_kwargs=dict(freeze_layers=2))  # fromrgb and conv0
    names = {name.partition(".parametrizations")[0] for name, _ in D.named_parameters()}
    assert {"b8.conv1", "b4.conv"} < names
    assert "b4.fc.weight" in names and "b8.skip.weight" in names
    assert not any(name.startswith("b8.conv0") for name in names)


def test_gradients_of_scores_and_of_the_penalty():
    """Also through the norm, which follows the weight; in float64 against finite differences."""
    torch.manual_seed(0)
    layer = Conv2dLayer(2, 3, kernel_size=3, activation="softplus")
    D = torch.nn.Sequential(layer)
    add_spectral_norm(D)
    D.eval().double()
    layer.resample_filter = layer.resample_filter.float()
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    raw = layer.parametrizations.weight.original

    def scores(weight):
        return torch.func.functional_call(D, {"0.parametrizations.weight.original": weight}, images)

    def penalty(weight):
        (gradient,) = torch.autograd.grad(scores(weight).sum(), images, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(scores, raw)
    assert torch.autograd.gradcheck(penalty, raw)
    torch.testing.assert_close(scores(2 * raw), scores(raw))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_snapshot_holds_the_same_function_as_plain_weights(tmp_path, mode):
    D = getattr(normalised(), mode)()
    before = copy.deepcopy(D.state_dict())
    random_state = torch.get_rng_state()
    plain = without_spectral_norm(D)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert D.training == plain.training == (mode == "train")
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    assert [n for n, _ in plain.named_parameters()] == [
        n for n, _ in Discriminator(0, 8, 1, channel_base=64).named_parameters()
    ]

    G, _ = tiny.networks()
    nets = dict(G=G, D=plain, G_ema=G)
    save_snapshot(tmp_path / "net.pkl", **nets, augment_pipe=None, training_set_kwargs={})
    with open(tmp_path / "net.pkl", "rb") as file:
        loaded = legacy.load_network_pkl(file)["D"]
    torch.testing.assert_close(run(loaded), run(D.eval()))


def test_a_network_without_it_is_handed_through():
    _, D = tiny.networks()
    assert without_spectral_norm(D) is D
