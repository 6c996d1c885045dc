"""One StyleGAN2-ADA training run: data, networks, augmentation, losses, loop, snapshots."""
