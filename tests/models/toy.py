"""A family of networks of two layers each: all that it takes to train, resume and generate."""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from models.plain_gan import PlainGAN
from torch_utils.persistence import persistent_class
from training.networks import FullyConnectedLayer
from training.settings.config import PlainConfig
from training.settings.setting import setting


@dataclass(frozen=True, kw_only=True)
class ToyConfig(PlainConfig):
    PRESETS = {"toy": dict(kimg=1, batch=8, lr=0.001)}
    width: int = setting("units of the hidden layer", 16, least=1, fixed_on_resume=True)


@persistent_class
class ToyG(torch.nn.Module):
    def __init__(self, z_dim, c_dim, width, img_channels, img_resolution):
        super().__init__()
        self.z_dim, self.c_dim = z_dim, c_dim
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.hidden = FullyConnectedLayer(z_dim + c_dim, width, activation="lrelu")
        self.out = FullyConnectedLayer(width, img_channels * img_resolution**2, activation="tanh")

    def forward(self, z, c):
        img = self.out(self.hidden(torch.cat([z, c], dim=1)))
        return img.reshape(-1, self.img_channels, self.img_resolution, self.img_resolution)


@persistent_class
class ToyD(torch.nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.hidden = FullyConnectedLayer(inputs, width, activation="lrelu")
        self.out = FullyConnectedLayer(width, 1)

    def forward(self, img, c):
        return self.out(self.hidden(torch.cat([img.flatten(1), c], dim=1)))


class ToyLoss:
    def __init__(self, G, D, report):
        self.G, self.D, self.report = G, D, report

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, gain):
        scores = self.D(self.G(gen_z, gen_c), gen_c)
        loss = softplus(-scores)
        if phase == "Dmain":
            loss = softplus(scores) + softplus(-self.D(real_img, real_c))
        loss.mean().mul(gain).backward()
        self.report("Loss/scores/fake", scores.detach())


def build_toy(config, data, device, report, networks=None):
    channels, size, labels = data.num_channels, data.resolution, data.label_dim
    G = ToyG(4, labels, config.width, channels, size)
    D = ToyD(channels * size**2 + labels, config.width)
    loss = ToyLoss(G, D, report)
    return PlainGAN(config, data, device, G=G, D=D, loss=loss, report=report, networks=networks)
