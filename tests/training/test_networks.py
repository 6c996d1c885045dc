import inspect

import numpy as np
import pytest
import torch

from tests.golden_cases import load_cases, relative_error
from training import networks
from training.networks import (
    Conv2dLayer,
    Discriminator,
    DiscriminatorBlock,
    Generator,
    MinibatchStdLayer,
    SynthesisBlock,
    SynthesisLayer,
    modulated_conv2d,
)

TOLERANCE = 1e-4


def tensors(arrays, prefix):
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(value))
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def case_ids(name):
    return range(len(load_cases(name)))


def build(net_class, meta, arrays):
    net = net_class(**meta["kwargs"])
    net.load_state_dict(tensors(arrays, "sd/"))
    assert [name for name, _ in net.named_parameters()] == meta["param_order"]
    return net


@pytest.mark.parametrize("index", case_ids("modulated_conv2d"))
def test_modulated_conv2d_golden(index):
    meta, arrays = load_cases("modulated_conv2d")[index]
    leaves = {k: torch.from_numpy(arrays[k]).requires_grad_() for k in ("x", "weight", "styles")}
    noise = torch.from_numpy(arrays["noise"]) if "noise" in arrays else None
    y = modulated_conv2d(
        **leaves, noise=noise, resample_filter=torch.from_numpy(arrays["f"]), **meta
    )
    assert relative_error(y, arrays["y"]) <= 1e-5
    y.backward(torch.from_numpy(arrays["dy"]))
    for name, leaf in leaves.items():
        assert relative_error(leaf.grad, arrays[f"d{name}"]) <= 1e-5


@pytest.mark.parametrize("index", case_ids("generator"))
def test_generator_golden_inference(index):
    meta, arrays = load_cases("generator")[index]
    G = build(Generator, meta, arrays).eval()
    assert G.num_ws == meta["num_ws"]
    z, c = torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["c"])
    results = {
        "ws": G.mapping(z, c),
        "ws_trunc": G.mapping(z, c, truncation_psi=0.6, truncation_cutoff=2),
        "img_const": G(z, c, noise_mode="const"),
        "img_none": G(z, c, truncation_psi=0.7, noise_mode="none"),
    }
    for name, value in results.items():
        assert relative_error(value, arrays[name]) <= TOLERANCE, name


@pytest.mark.parametrize("index", case_ids("generator"))
def test_generator_golden_training(index):
    meta, arrays = load_cases("generator")[index]
    G = build(Generator, meta, arrays).train()
    z = torch.from_numpy(arrays["z"]).requires_grad_()
    img = G(z, torch.from_numpy(arrays["c"]), noise_mode="const")
    assert relative_error(img, arrays["train/img"]) <= TOLERANCE
    img.backward(torch.from_numpy(arrays["train/dimg"]))
    assert relative_error(z.grad, arrays["train/dz"]) <= TOLERANCE
    assert relative_error(G.mapping.w_avg, arrays["train/w_avg"]) <= TOLERANCE
    expected = tensors(arrays, "train/grad/")
    assert expected
    parameters = dict(G.named_parameters())
    for name, gradient in expected.items():
        assert relative_error(parameters[name].grad, gradient) <= TOLERANCE, name


@pytest.mark.parametrize("index", case_ids("discriminator"))
def test_discriminator_golden(index):
    meta, arrays = load_cases("discriminator")[index]
    D = build(Discriminator, meta, arrays)
    img = torch.from_numpy(arrays["img"]).requires_grad_()
    logits = D(img, torch.from_numpy(arrays["c"]))
    assert relative_error(logits, arrays["logits"]) <= TOLERANCE
    (dimg,) = torch.autograd.grad(logits.sum(), img, create_graph=True)
    assert relative_error(dimg, arrays["dlogits_dimg"]) <= TOLERANCE
    r1 = dimg.square().sum(dim=(1, 2, 3))
    assert relative_error(r1, arrays["r1"]) <= TOLERANCE
    assert meta["grad_of"] == "softplus(-logits).mean() + 0.05 * r1.mean()"
    (torch.nn.functional.softplus(-logits).mean() + 0.05 * r1.mean()).backward()
    expected = tensors(arrays, "grad/")
    assert expected
    parameters = dict(D.named_parameters())
    for name, gradient in expected.items():
        assert relative_error(parameters[name].grad, gradient) <= TOLERANCE, name


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [1, 2])
def test_modulated_conv2d_formulations_agree(demodulate, up):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, 8, 8), torch.randn(5, 4, 3, 3)
    styles = torch.randn(3, 4)
    kwargs = dict(up=up, padding=1, demodulate=demodulate, flip_weight=(up == 1))
    fused = modulated_conv2d(x, weight, styles, fused_modconv=True, **kwargs)
    unfused = modulated_conv2d(x, weight, styles, fused_modconv=False, **kwargs)
    assert relative_error(fused, unfused) <= 1e-5


def test_half_precision_demodulation_does_not_overflow():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 4, 4)
    weight, styles = torch.randn(8, 64, 3, 3), torch.randn(2, 64) * 1e4
    exact = modulated_conv2d(x, weight, styles, padding=1, fused_modconv=False)
    half = modulated_conv2d(x.half(), weight, styles, padding=1, fused_modconv=False)
    assert half.dtype == torch.float16
    assert relative_error(half.float(), exact) <= 1e-2


def test_minibatch_std_groups():
    x = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    y = MinibatchStdLayer(group_size=3, num_channels=2)(x)
    assert y.shape == (6, 6, 2, 2)
    # Sample i belongs to group i mod 2; channels 0-1 and 2-3 have a statistic each.
    for sample in range(6):
        group = x[sample % 2 :: 2]
        for part in range(2):
            std = (group[:, 2 * part : 2 * part + 2].var(dim=0, unbiased=False) + 1e-8).sqrt()
            torch.testing.assert_close(y[sample, 4 + part], std.mean().expand(2, 2))


def test_minibatch_std_refuses_uneven_groups():
    with pytest.raises(ValueError, match="batch of 6 cannot be split into groups of 4"):
        MinibatchStdLayer(4)(torch.zeros(6, 1, 2, 2))


def test_frozen_layers_are_buffers():
    D = Discriminator(0, 16, 3, architecture="orig", block_kwargs=dict(freeze_layers=2))
    parameters = {name for name, _ in D.named_parameters()}
    assert "b16.fromrgb.weight" not in parameters and "b16.conv0.bias" not in parameters
    assert "b16.conv1.weight" in parameters


def test_random_noise_differs_and_none_is_deterministic():
    torch.manual_seed(0)
    layer = SynthesisLayer(2, 2, w_dim=4, resolution=8)
    torch.nn.init.ones_(layer.noise_strength)
    x, w = torch.randn(1, 2, 8, 8), torch.randn(1, 4)
    assert not torch.equal(layer(x, w), layer(x, w))
    assert torch.equal(layer(x, w, noise_mode="none"), layer(x, w, noise_mode="none"))
    with pytest.raises(ValueError, match="noise_mode"):
        layer(x, w, noise_mode="loud")


@pytest.mark.parametrize("resolution", [2, 12, 48])
def test_resolution_must_be_a_power_of_two(resolution):
    with pytest.raises(ValueError, match=f"power of two of at least 4, not {resolution}"):
        Generator(8, 0, 8, resolution, 3)


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="architecture is orig, skip or resnet"):
        Discriminator(0, 16, 3, architecture="unet")


def test_equalised_learning_rate_keeps_unit_variance():
    torch.manual_seed(0)
    y = Conv2dLayer(64, 64, kernel_size=3)(torch.randn(8, 64, 16, 16))
    assert y.var().item() == pytest.approx(1, abs=0.1)


def test_source_travels_alone():
    """The official loader executes this source: it may name only what exists there too."""
    imports = [
        line
        for line in inspect.getsource(networks).splitlines()
        if line.startswith(("import", "from"))
    ]
    assert imports == [
        "from __future__ import annotations",
        "from collections.abc import Sequence",
        "from typing import Any",
        "import numpy as np",
        "import torch",
        "from torch_utils import misc, persistence",
        "from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d",
    ]
    names = {"misc": {"assert_shape", "profiled_function"}, "persistence": {"persistent_class"}}
    for module, allowed in names.items():
        used = {
            word.split("(")[0].split(".")[1]
            for word in inspect.getsource(networks).split()
            if word.lstrip("@").startswith(f"{module}.")
        }
        assert used == allowed


def small_networks(half_dtype, num_fp16_res=2):
    """G and D of 32x32 images with weights of their own seed; half precision at 16 and 32."""
    torch.manual_seed(0)
    half = dict(num_fp16_res=num_fp16_res, conv_clamp=256)
    size = dict(channel_base=256)
    dtype = dict(half_dtype=half_dtype)
    G = Generator(8, 0, 8, 32, 3, synthesis_kwargs=dict(**size, **half, **dtype))
    D = Discriminator(0, 32, 3, **size, **half, block_kwargs=dtype)
    return G, D


def dtypes(net):
    """The dtype of the features that leave each block, in the order of the blocks."""
    seen = []

    def note(module, args, output):
        seen.append(output[0].dtype)

    for module in net.modules():
        if isinstance(module, SynthesisBlock | DiscriminatorBlock):
            module.register_forward_hook(note)
    return seen


def test_bfloat16_runs_in_the_highest_resolutions_alone():
    G, D = small_networks("bfloat16")
    seen_G, seen_D = dtypes(G.synthesis), dtypes(D)
    img = G(torch.randn(2, 8), None, noise_mode="const")
    scores = D(img, None)
    assert img.dtype == scores.dtype == torch.float32
    full, half = torch.float32, torch.bfloat16
    assert seen_G == [full, full, half, half], "from 4x4 to 32x32"
    assert seen_D == [half, half, full], "from 32x32 to 8x8"


def test_bfloat16_is_close_to_float32_and_forced_float32_equal_to_it():
    G, D = small_networks("bfloat16")
    exact_G, exact_D = small_networks("bfloat16", num_fp16_res=0)
    z = torch.randn(4, 8)
    img, exact = (net(z, None, noise_mode="const") for net in (G, exact_G))
    assert 0 < relative_error(img, exact) < 0.05
    assert 0 < relative_error(D(exact, None), exact_D(exact, None)) < 0.05
    forced = G(z, None, noise_mode="const", force_fp32=True)
    torch.testing.assert_close(forced, exact)


def test_bfloat16_trains():
    """Gradients, also of a penalty on gradients, reach every weight and are finite."""
    G, D = small_networks("bfloat16")
    img = G(torch.randn(4, 8), None)
    D(img, None).sum().backward()
    real = torch.rand(4, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(D(real, None).sum(), real, create_graph=True)
    gradient.square().sum().backward()
    for net in (G, D):
        for name, p in net.named_parameters():
            if "noise_strength" not in name:
                assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_float16_falls_back_to_float32_on_the_cpu():
    G, _ = small_networks("float16")
    seen = dtypes(G.synthesis)
    G(torch.randn(2, 8), None)
    assert set(seen) == {torch.float32}


def test_other_half_dtypes_are_refused():
    with pytest.raises(ValueError, match="half_dtype is float16 or bfloat16, not 'half'"):
        small_networks("half")
