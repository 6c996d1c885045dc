"""StyleGAN2 generator and discriminator (Karras et al. 2020b, with the settings of StyleGAN2-ADA).

The source text of this file travels inside network snapshots and is executed by the official
StyleGAN2-ADA-PyTorch loader. It may therefore use only those project names that exist there too
(a test holds the list), and constructor arguments, parameter and buffer names are part of the
snapshot format. Images are float32 NCHW in [-1, 1]. The `num_fp16_res` highest resolutions run in
half precision: bfloat16 anywhere, float16 on CUDA only; instead of it the CPU uses float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d

SQRT_HALF = float(np.sqrt(0.5))
HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@misc.profiled_function
def normalize_2nd_moment(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """Scale `x`, of any shape, so that its mean square along `dim` is one."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def _prenormalize(weight: torch.Tensor, styles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring weights and styles to unit max-norm, so that float16 demodulation cannot overflow.

    Demodulation cancels any factor per output channel and per sample, so the result is unchanged.
    """
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * np.sqrt(fan_in))
    styles = styles / styles.abs().amax(dim=1, keepdim=True)
    return weight, styles


@misc.profiled_function
def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> torch.Tensor:
    """Convolve each sample with its own scaled weights (StyleGAN2 paper, equations 1-3).

    Args:
        x: Input [N, I, H, W].
        weight: Shared weights [O, I, k, k], float32.
        styles: Scale of each input channel [N, I].
        noise: Added to the output, broadcastable to it, or None.
        up, down, padding, resample_filter, flip_weight: As in `conv2d_resample`.
        demodulate: Rescale each output channel to unit expected variance.
        fused_modconv: One grouped convolution with N sets of weights; or the equal formulation
            that scales activations before and after one shared convolution.

    Returns:
        Output [N, O, H', W'] of the dtype of `x`.
    """
    batch, in_channels = styles.shape
    out_channels = weight.shape[0]
    misc.assert_shape(weight, [None, in_channels, None, None])
    misc.assert_shape(x, [batch, in_channels, None, None])
    if x.dtype == torch.float16 and demodulate:
        weight, styles = _prenormalize(weight, styles)
    resample: dict[str, Any] = dict(f=resample_filter, up=up, down=down, padding=padding)
    resample["flip_weight"] = flip_weight

    # Equation 3: the norm of the modulated weights, without forming them. Shape [N, O].
    scale = None
    if demodulate:
        norm = styles.square() @ weight.square().sum(dim=(2, 3)).t()
        scale = (norm + 1e-8).rsqrt()

    if fused_modconv:
        w = weight.unsqueeze(0) * styles[:, None, :, None, None]  # equation 1: [N, O, I, k, k]
        if scale is not None:
            w = w * scale[:, :, None, None, None]
        w = w.reshape(-1, *weight.shape[1:]).to(x.dtype)
        x = x.reshape(1, -1, *x.shape[2:])
        y = conv2d_resample.conv2d_resample(x=x, w=w, groups=batch, **resample)
        y = y.reshape(batch, out_channels, *y.shape[2:])
        return y if noise is None else y + noise.to(y.dtype)

    y = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample.conv2d_resample(x=y, w=weight.to(x.dtype), **resample)
    if scale is not None:
        scale = scale.to(x.dtype)[:, :, None, None]
        return y * scale if noise is None else fma.fma(y, scale, noise.to(y.dtype))
    return y if noise is None else y + noise.to(y.dtype)


def _random_weight(
    out_channels: int, in_channels: int, kernel_size: int, channels_last: bool
) -> torch.Tensor:
    weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return weight.contiguous(memory_format=layout)


def _biased_activation(layer: Any, x: torch.Tensor, gain: float) -> torch.Tensor:
    """End of a convolutional layer: bias, activation, its gain times `gain`, clamp likewise."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain
    gain = layer.act_gain * gain
    return bias_act.bias_act(x, bias, act=layer.activation, gain=gain, clamp=clamp)


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """Linear layer with equalised learning rate: [N, in_features] -> [N, out_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        weight = torch.randn([out_features, in_features]) / lr_multiplier
        self.weight = torch.nn.Parameter(weight)
        initial_bias = torch.full([out_features], float(bias_init))
        self.bias = torch.nn.Parameter(initial_bias) if bias else None
        self.weight_gain = float(lr_multiplier / np.sqrt(in_features))
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer in the dtype of `x`."""
        w = self.weight.to(x.dtype) * self.weight_gain
        b = None if self.bias is None else self.bias.to(x.dtype) * self.bias_gain
        if self.activation == "linear":
            return torch.nn.functional.linear(x, w, b)
        return bias_act.bias_act(x.matmul(w.t()), b, act=self.activation)


@persistence.persistent_class
class Conv2dLayer(torch.nn.Module):
    """Convolution with equalised learning rate, optional resampling, bias and activation.

    A layer that is not `trainable` keeps weight and bias as buffers (Freeze-D, Mo et al. 2020).
    """

    weight: torch.Tensor
    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] | None = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = float(1 / np.sqrt(in_channels * kernel_size**2))
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))

        weight = _random_weight(out_channels, in_channels, kernel_size, channels_last)
        for name, value in (("weight", weight), ("bias", torch.zeros([out_channels]))):
            if name == "bias" and not bias:
                self.bias = None
            elif trainable:
                self.register_parameter(name, torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H', W'], output scaled by `gain`."""
        w = (self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample.conv2d_resample(
            x=x,
            w=w,
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=(self.up == 1),
        )
        return _biased_activation(self, x, gain)


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """Latent z and label c to the intermediate latent w; also embeds the labels of D (z_dim = 0).

    `num_ws=None` returns w [N, w_dim] without repeating it; `w_avg_beta=None` keeps no mean of w.
    """

    w_avg: torch.Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        embed_features = w_dim if embed_features is None else embed_features
        layer_features = w_dim if layer_features is None else layer_features
        widths = [z_dim, *[layer_features] * (num_layers - 1), w_dim]
        if c_dim > 0:
            widths[0] += embed_features
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for idx in range(num_layers):
            fc = FullyConnectedLayer(
                widths[idx], widths[idx + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{idx}", fc)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> torch.Tensor:
        """Map z [N, z_dim] and c [N, c_dim] to ws [N, num_ws, w_dim] (float32).

        z may be None where z_dim is 0, and c where c_dim is. `truncation_psi` pulls the first
        `truncation_cutoff` (default: all) copies of w towards the running mean (StyleGAN paper,
        appendix B).
        """
        inputs = []
        if self.z_dim > 0:
            assert z is not None
            misc.assert_shape(z, [None, self.z_dim])
            inputs.append(normalize_2nd_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            assert c is not None
            misc.assert_shape(c, [None, self.c_dim])
            inputs.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))
        x = torch.cat(inputs, dim=1)
        for idx in range(self.num_layers):
            x = getattr(self, f"fc{idx}")(x)

        if self.num_ws is not None and self.w_avg_beta is not None:
            if self.training and not skip_w_avg_update:
                self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is not None:
            x = x.unsqueeze(1).repeat([1, self.num_ws, 1])
        if truncation_psi != 1:
            x = self._truncate(x, truncation_psi, truncation_cutoff)
        return x

    def _truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
        if cutoff is None:
            return self.w_avg.lerp(ws, psi)
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """Modulated convolution, noise, bias and activation of one style."""

    resample_filter: torch.Tensor
    noise_const: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] | None = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.resolution, self.up = resolution, up
        self.use_noise, self.activation, self.conv_clamp = use_noise, activation, conv_clamp
        self.padding = kernel_size // 2
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        weight = _random_weight(out_channels, in_channels, kernel_size, channels_last)
        self.weight = torch.nn.Parameter(weight)
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution]))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def _noise(self, x: torch.Tensor, noise_mode: str) -> torch.Tensor | None:
        if not self.use_noise or noise_mode == "none":
            return None
        if noise_mode == "const":
            return self.noise_const * self.noise_strength
        shape = [x.shape[0], 1, self.resolution, self.resolution]
        return torch.randn(shape, device=x.device) * self.noise_strength

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = "random",
        fused_modconv: bool = True,
        gain: float = 1,
    ) -> torch.Tensor:
        """Features [N, in_channels, H, W] and style w [N, w_dim] to [N, out_channels, H', W']."""
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is random, const or none, not {noise_mode!r}")
        noise = self._noise(x, noise_mode)
        x = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=(self.up == 1),
            fused_modconv=fused_modconv,
        )
        return _biased_activation(self, x, gain)


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    """Features to image channels: modulated 1x1 convolution without demodulation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        weight = _random_weight(out_channels, in_channels, kernel_size, channels_last)
        self.weight = torch.nn.Parameter(weight)
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = float(1 / np.sqrt(in_channels * kernel_size**2))

    def forward(self, x: torch.Tensor, w: torch.Tensor, fused_modconv: bool = True) -> torch.Tensor:
        """Features [N, in_channels, H, W] and style w [N, w_dim] to [N, out_channels, H, W]."""
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, demodulate=False, fused_modconv=fused_modconv)
        return bias_act.bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


def _check_choices(architecture: str, half_dtype: str = "float16") -> None:
    if architecture not in ("orig", "skip", "resnet"):
        raise ValueError(f"architecture is orig, skip or resnet, not {architecture!r}")
    if half_dtype not in HALF_DTYPES:
        raise ValueError(f"half_dtype is float16 or bfloat16, not {half_dtype!r}")


def _precision(
    block: Any, x: torch.Tensor, force_fp32: bool
) -> tuple[torch.dtype, torch.memory_format]:
    """The dtype and memory format that `block` computes in, for input like `x`."""
    dtype = HALF_DTYPES[block.half_dtype]
    if not block.use_fp16 or force_fp32 or (dtype == torch.float16 and not x.is_cuda):
        return torch.float32, torch.contiguous_format
    return dtype, torch.channels_last if block.channels_last else torch.contiguous_format


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    """All layers of one resolution of the generator."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] | None = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        half_dtype: str = "float16",
        **layer_kwargs: Any,
    ) -> None:
        _check_choices(architecture, half_dtype)
        super().__init__()
        self.in_channels, self.w_dim = in_channels, w_dim
        self.architecture, self.use_fp16, self.half_dtype = architecture, use_fp16, half_dtype
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = 1 if is_last or architecture == "skip" else 0
        shared: dict[str, Any] = dict(conv_clamp=conv_clamp, channels_last=self.channels_last)
        layer: dict[str, Any] = dict(w_dim=w_dim, resolution=resolution, **shared, **layer_kwargs)
        layer["resample_filter"] = resample_filter
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, **layer)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer)
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **shared)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                up=2,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def forward(
        self,
        x: torch.Tensor | None,
        img: torch.Tensor | None,
        ws: torch.Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        **layer_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features x and image so far, both of half the resolution (or None), to the same here.

        Args:
            x: Features [N, in_channels, H / 2, W / 2]; None in the first block.
            img: Image [N, img_channels, H / 2, W / 2], or None.
            ws: Styles [N, num_conv + num_torgb, w_dim], float32.
            force_fp32: Compute in float32, whatever the block is made for.
            fused_modconv: As in `modulated_conv2d`; None: whichever is faster.
            layer_kwargs: For the `SynthesisLayer`s: noise_mode.

        Returns:
            x [N, out_channels, H, W] in half or float32; img [N, img_channels, H, W] in float32.
        """
        misc.assert_shape(ws, [None, self.num_conv + self.num_torgb, self.w_dim])
        styles = iter(ws.unbind(dim=1))
        dtype, layout = _precision(self, ws, force_fp32)
        if fused_modconv is None:
            # A grouped convolution saves memory traffic at inference; in training, and on the
            # CPU always, scaling the activations is the faster of the two equal formulations.
            small = dtype == torch.float32 or len(ws) == 1
            fused_modconv = ws.is_cuda and not self.training and small
        layer: dict[str, Any] = dict(fused_modconv=fused_modconv, **layer_kwargs)

        if x is None:
            y = self.const.to(dtype=dtype).unsqueeze(0).repeat([ws.shape[0], 1, 1, 1])
            y = self.conv1(y.contiguous(memory_format=layout), next(styles), **layer)
        else:
            y = x.to(dtype=dtype, memory_format=layout)
            shortcut = self.skip(y, gain=SQRT_HALF) if self.architecture == "resnet" else None
            y = self.conv0(y, next(styles), **layer)
            gain = 1 if shortcut is None else SQRT_HALF
            y = self.conv1(y, next(styles), gain=gain, **layer)
            y = y if shortcut is None else shortcut + y

        if img is not None:
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(y, next(styles), fused_modconv=fused_modconv)
            rgb = rgb.to(dtype=torch.float32, memory_format=torch.contiguous_format)
            img = rgb if img is None else img + rgb
        return y, img


def _block_resolutions(img_resolution: int) -> list[int]:
    """4, 8, ..., img_resolution; a resolution must be a power of two of at least 4."""
    log2 = img_resolution.bit_length() - 1
    if img_resolution < 4 or img_resolution != 2**log2:
        raise ValueError(f"resolution must be a power of two of at least 4, not {img_resolution}")
    return [2**i for i in range(2, log2 + 1)]


def _lowest_fp16_resolution(img_resolution: int, num_fp16_res: int) -> int:
    """The lowest of the `num_fp16_res` highest resolutions, never below 8."""
    return max(2 * img_resolution // 2**num_fp16_res, 8)


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """ws [N, num_ws, w_dim] to images [N, img_channels, img_resolution, img_resolution]."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = _block_resolutions(img_resolution)
        channels = {res: min(channel_base // res, channel_max) for res in self.block_resolutions}
        fp16_from = _lowest_fp16_resolution(img_resolution, num_fp16_res)

        self.num_ws = 0
        for res in self.block_resolutions:
            block = SynthesisBlock(
                channels[res // 2] if res > 4 else 0,
                channels[res],
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=(res == img_resolution),
                use_fp16=(res >= fp16_from),
                **block_kwargs,
            )
            # ToRGB shares its style with the next block's first layer; only the last has its own.
            self.num_ws += block.num_conv + (block.num_torgb if res == img_resolution else 0)
            setattr(self, f"b{res}", block)

    def forward(self, ws: torch.Tensor, **block_kwargs: Any) -> torch.Tensor:
        """Synthesise float32 images; `block_kwargs`: noise_mode, force_fp32, fused_modconv."""
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        ws = ws.to(torch.float32)
        x = img = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            block_ws = ws.narrow(1, first, block.num_conv + block.num_torgb)
            x, img = block(x, img, block_ws, **block_kwargs)
            first += block.num_conv
        assert img is not None, "the last block makes one in every architecture"
        return img


@persistence.persistent_class
class Generator(torch.nn.Module):
    """StyleGAN2 generator: z [N, z_dim], c [N, c_dim] to images [N, C, H, W]."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},
        synthesis_kwargs: dict[str, Any] = {},
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim = z_dim, c_dim
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **mapping_kwargs)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        **synthesis_kwargs: Any,
    ) -> torch.Tensor:
        """Generate float32 images, nominally in [-1, 1] but not clamped."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    """All layers of one resolution of the discriminator; halves the resolution."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        first_layer_idx: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter: Sequence[float] | None = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
        half_dtype: str = "float16",
    ) -> None:
        _check_choices(architecture, half_dtype)
        super().__init__()
        self.in_channels, self.resolution = in_channels, resolution
        self.img_channels, self.architecture = img_channels, architecture
        self.use_fp16, self.half_dtype = use_fp16, half_dtype
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        self.num_layers = 0

        def layer(
            in_channels: int, out_channels: int, kernel_size: int, **kwargs: Any
        ) -> Conv2dLayer:
            index = first_layer_idx + self.num_layers
            self.num_layers += 1
            return Conv2dLayer(
                in_channels,
                out_channels,
                kernel_size=kernel_size,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
                trainable=(index >= freeze_layers),
                **kwargs,
            )

        activated: dict[str, Any] = dict(activation=activation, conv_clamp=conv_clamp)
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, 1, **activated)
        self.conv0 = layer(tmp_channels, tmp_channels, 3, **activated)
        self.conv1 = layer(tmp_channels, out_channels, 3, down=2, **activated)
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, 1, bias=False, down=2)

    def forward(
        self, x: torch.Tensor | None, img: torch.Tensor | None, force_fp32: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features x (None in the first block) and image to both at half the resolution.

        The image is None from the second block on, except in the skip architecture.
        """
        given = img if x is None else x
        assert given is not None
        dtype, layout = _precision(self, given, force_fp32)
        if x is not None:
            misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
            x = x.to(dtype=dtype, memory_format=layout)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            misc.assert_shape(img, [None, self.img_channels, self.resolution, self.resolution])
            y = self.fromrgb(img.to(dtype=dtype, memory_format=layout))
            x = y if x is None else x + y
            is_skip = self.architecture == "skip"
            img = upfirdn2d.downsample2d(img, self.resample_filter) if is_skip else None

        if self.architecture == "resnet":
            shortcut = self.skip(x, gain=SQRT_HALF)
            return shortcut + self.conv1(self.conv0(x), gain=SQRT_HALF), img
        return self.conv1(self.conv0(x)), img


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """Append the standard deviation over groups of samples as extra channels (ProGAN, sec. 3).

    Groups are of `group_size` samples (None: the batch; never more than the batch), which must
    divide the batch: sample i is in group i modulo (N / group_size).
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C + num_channels, H, W]."""
        batch, channels, height, width = x.shape
        group = batch if self.group_size is None else min(self.group_size, batch)
        if batch % group:
            raise ValueError(f"batch of {batch} cannot be split into groups of {group} samples")
        y = x.reshape(group, -1, self.num_channels, channels // self.num_channels, height, width)
        y = (y.var(dim=0, unbiased=False) + 1e-8).sqrt()
        y = y.mean(dim=(2, 3, 4))  # [N / group, num_channels]
        y = y.reshape(-1, self.num_channels, 1, 1).repeat(group, 1, height, width)
        return torch.cat([x, y.to(x.dtype)], dim=1)


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    """4x4 features to logits; with labels, a projection onto the mapped label."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ) -> None:
        _check_choices(architecture)
        super().__init__()
        self.in_channels, self.cmap_dim = in_channels, cmap_dim
        self.resolution, self.architecture = resolution, architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, activation=activation)
        self.mbstd = None
        if mbstd_num_channels > 0:
            self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels)
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels,
            in_channels,
            3,
            activation=activation,
            conv_clamp=conv_clamp,
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, True, activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(
        self, x: torch.Tensor, img: torch.Tensor | None, cmap: torch.Tensor | None
    ) -> torch.Tensor:
        """Features [N, C, 4, 4], image (skip only), mapped label [N, cmap_dim] to [N, 1]."""
        misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
        x = x.to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(dtype=torch.float32))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            assert cmap is not None
            misc.assert_shape(cmap, [None, self.cmap_dim])
            x = (x * cmap).sum(dim=1, keepdim=True) / np.sqrt(self.cmap_dim)
        return x


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """StyleGAN2 discriminator: images [N, C, H, W], labels [N, c_dim] to logits [N, 1]."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: dict[str, Any] = {},
        mapping_kwargs: dict[str, Any] = {},
        epilogue_kwargs: dict[str, Any] = {},
    ) -> None:
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = _block_resolutions(img_resolution)[:0:-1]  # without the 4x4
        resolutions = [*self.block_resolutions, 4]
        channels = {res: min(channel_base // res, channel_max) for res in resolutions}
        fp16_from = _lowest_fp16_resolution(img_resolution, num_fp16_res)
        cmap_dim = channels[4] if cmap_dim is None else cmap_dim
        cmap_dim = cmap_dim if c_dim > 0 else 0
        shared: dict[str, Any] = dict(img_channels=img_channels, architecture=architecture)
        shared["conv_clamp"] = conv_clamp
        layer_idx = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(
                channels[res] if res < img_resolution else 0,
                channels[res],
                channels[res // 2],
                resolution=res,
                first_layer_idx=layer_idx,
                use_fp16=(res >= fp16_from),
                **shared,
                **block_kwargs,
            )
            setattr(self, f"b{res}", block)
            layer_idx += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **mapping_kwargs
            )
        self.b4 = DiscriminatorEpilogue(channels[4], cmap_dim, 4, **shared, **epilogue_kwargs)

    def forward(
        self, img: torch.Tensor, c: torch.Tensor | None, **block_kwargs: Any
    ) -> torch.Tensor:
        """Logits [N, 1], float32; `block_kwargs`: force_fp32."""
        x = None
        for res in self.block_resolutions:
            x, img = getattr(self, f"b{res}")(x, img, **block_kwargs)
        return self.b4(x, img, self.mapping(None, c) if self.c_dim > 0 else None)
