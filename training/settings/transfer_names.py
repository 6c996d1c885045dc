"""Snapshots that NVIDIA published with StyleGAN2-ADA, by the names that --resume takes."""

_ROOT = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets"
OFFICIAL_SNAPSHOTS = {
    "ffhq256": f"{_ROOT}/ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": f"{_ROOT}/ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": f"{_ROOT}/ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": f"{_ROOT}/celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": f"{_ROOT}/lsundog-res256-paper256-kimg100000-noaug.pkl",
}
