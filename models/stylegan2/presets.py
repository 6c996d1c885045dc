"""StyleGAN2's presets: what `--cfg` chooses, as values of `StyleGAN2Config` by their names.

Sources: StyleGAN2-ADA (Karras et al. 2020a, appendix C) for the official six, with the values of
its released configurations. `digits` is ours: small networks for 16x16 images on a laptop.
"""

from typing import Any

# What every preset starts from.
COMMON = dict(
    z_dim=512,
    w_dim=512,
    channel_max=512,
    style_mixing=0.9,
    pl_weight=2.0,
    g_arch="skip",
    d_arch="resnet",
    ema_rampup=None,
    mapping_layers=8,
)

# CIFAR-10 (StyleGAN2-ADA, appendix D).
CIFAR = dict(
    kimg=100000,
    batch=64,
    batch_gpu=32,
    mbstd_group=32,
    g_scale=2.0,
    d_scale=2.0,
    lr=0.0025,
    gamma=0.01,
    ema_kimg=500.0,
    ema_rampup=0.05,
    mapping_layers=2,
    pl_weight=0.0,
    style_mixing=0.0,
    d_arch="orig",
)

# Fixed presets. `batch_gpu` is what each of the processes saw that a preset was made for.
PRESETS: dict[str, dict[str, Any]] = {
    "stylegan2": dict(
        kimg=25000,
        batch=32,
        batch_gpu=4,
        mbstd_group=4,
        g_scale=2.0,
        d_scale=2.0,
        lr=0.002,
        gamma=10.0,
        ema_kimg=10.0,
    ),
    "paper256": dict(
        kimg=25000,
        batch=64,
        batch_gpu=8,
        mbstd_group=8,
        g_scale=1.0,
        d_scale=1.0,
        lr=0.0025,
        gamma=1.0,
        ema_kimg=20.0,
    ),
    "paper512": dict(
        kimg=25000,
        batch=64,
        batch_gpu=8,
        mbstd_group=8,
        g_scale=2.0,
        d_scale=2.0,
        lr=0.0025,
        gamma=0.5,
        ema_kimg=20.0,
    ),
    "paper1024": dict(
        kimg=25000,
        batch=32,
        batch_gpu=4,
        mbstd_group=4,
        g_scale=2.0,
        d_scale=2.0,
        lr=0.002,
        gamma=2.0,
        ema_kimg=10.0,
    ),
    "cifar": CIFAR,
    # CoopInit's row of Tables 1 and 6: FID 6.40 -> 4.34 without augmentation.
    "cifar-coopinit": CIFAR | dict(kimg=25000, gamma=0.0, coop_kimg=750),
    # What CoopInit, section 5.4, varies (Tables 5 and 7-9): channels 512, 512, 256, 128 at 4, 8,
    # 16, 32, no lazy regularisation, 25M images without augmentation. The baseline: add
    # --coop-kimg=750 for the rows of the method, --gamma=0.01 for those with R1.
    "coopinit-base": CIFAR | dict(kimg=25000, g_scale=0.25, d_scale=0.25, gamma=0.0, lazy=False),
    # 32 channels at 16x16 and 64 below: an iteration takes a fraction of a second on a laptop.
    "digits": dict(
        kimg=1000,
        batch=32,
        batch_gpu=32,
        mbstd_group=4,
        g_scale=1 / 32,
        d_scale=1 / 32,
        lr=0.0025,
        gamma=0.01,
        ema_kimg=5.0,
        ema_rampup=0.05,
        mapping_layers=2,
        pl_weight=0.0,
        style_mixing=0.0,
        d_arch="orig",
        z_dim=64,
        w_dim=64,
        channel_max=64,
    ),
}


def auto(resolution: int, gpus: int) -> dict[str, Any]:
    """Heuristics for data that no fixed preset fits (the official `auto`)."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    scale = 2.0 if resolution >= 512 else 1.0
    return dict(
        kimg=25000,
        batch=batch,
        batch_gpu=batch // gpus,
        mbstd_group=min(batch // gpus, 4),
        g_scale=scale,
        d_scale=scale,
        lr=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
        ema_rampup=0.05,
        mapping_layers=2,
    )
