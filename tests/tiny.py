"""The smallest data set, settings and networks that make a whole run, for the tests."""

import pytest
import torch

from metrics.classifier import Classifier, save_detector
from tests import make_data
from training.dataset import ImageFolderDataset
from training.model import build_model
from training.networks import Discriminator, Generator
from training.run.snapshot_file import save_snapshot
from training.settings.config import make_config

# From Python 3.12 on, forking while PyTorch has threads is warned of; data-loader workers do so.
starts_workers = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def write_data(path, count=20, size=8, classes=3, channels=1):
    """Write a labelled archive (a zip) of random images and return its path as a string."""
    labels = [i % classes for i in range(count)]
    images = make_data.pixels(count, size, channels)
    return make_data.write_zip(path, make_data.archive_files(images, labels))


def config(resolution=8, **options):
    """Settings of a run on `write_data()`, with changes."""
    small = dict(data="tiny.zip", cfg="digits", kimg=1, batch=8, workers=0, ops="ref")
    return make_config(small | options, resolution=resolution)


def model(data, report=lambda name, value: None, networks=None, **options):
    """The model of a run on `write_data()`, on the CPU."""
    settings = config(data=str(data), **options)
    dataset = ImageFolderDataset(data, use_labels=settings.cond)
    return build_model(settings, dataset, torch.device("cpu"), report, networks)


def networks(c_dim=0, resolution=8, seed=0):
    """G and D of a few channels, for grey images."""
    torch.manual_seed(seed)
    G = Generator(
        z_dim=4,
        c_dim=c_dim,
        w_dim=4,
        img_resolution=resolution,
        img_channels=1,
        mapping_kwargs=dict(num_layers=1),
        synthesis_kwargs=dict(channel_base=32),
    )
    D = Discriminator(c_dim, resolution, 1, channel_base=32)
    return G, D


def write_snapshot(path, data, c_dim=0, resolution=8, **kwargs):
    """Write a snapshot of `networks()` that was "trained" on `data`; returns its path."""
    G, D = networks(c_dim, resolution)
    view = dict(use_labels=c_dim > 0, max_size=None, xflip=False, resolution=resolution)
    named = dict(class_name="training.dataset.ImageFolderDataset", path=str(data))
    nets = dict(G=G, D=D, G_ema=G, augment_pipe=None)
    save_snapshot(path, training_set_kwargs=named | view | kwargs, **nets)
    return str(path)


def write_detector(path, classes=3, channels=1, size=8, seed=0):
    """Write an untrained detector with random weights; returns its path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_detector(Classifier(classes, channels, size, size).eval(), path)
    return str(path)
