"""Batches of real images and of random latents, on the training device."""

import contextlib
import warnings

import torch

from training.dataset import DatasetError, InfiniteSampler


@contextlib.contextmanager
def few_cores_are_fine():
    """Torch warns where there are more workers than cores; the default of three does no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


class RealImages:
    """Endless iterator over batches of real images; a context manager that ends its workers.

    Yields (images [N, C, H, W] float32 in [-1, 1], labels [N, c_dim] float32), N the batch of this
    process. `start` is the number of images that earlier batches have drawn, so that a stream can
    be taken up where it was left. A damaged image raises DatasetError when its turn comes.
    """

    def __init__(self, dataset, config, device, start=0):
        self._device = device
        self._label_dim = dataset.label_dim
        self._one_hot = dataset.has_onehot_labels
        self._labels = torch.from_numpy(dataset.raw_labels).to(device)
        self._batch_gpu = config.batch_gpu
        self._z_dim = config.z_dim
        with few_cores_are_fine():
            self._loader = torch.utils.data.DataLoader(
                dataset,
                sampler=InfiniteSampler(len(dataset), seed=config.seed, start=start),
                batch_size=config.batch // config.gpus,
                num_workers=config.workers,
                pin_memory=(device.type == "cuda"),
                prefetch_factor=2 if config.workers else None,
            )
        self._batches = None

    def __enter__(self):
        with few_cores_are_fine():
            self._batches = iter(self._loader)
        return self

    def __exit__(self, *exc_info):
        self._batches = None  # the loader's iterator ends its workers when it goes

    def __next__(self):
        try:
            images, labels = next(self._batches)
        except DatasetError as error:
            # Its traceback would keep the iterator, and thereby the workers, beyond __exit__.
            raise error.with_traceback(None) from None
        images = images.to(self._device, non_blocking=True).to(torch.float32) / 127.5 - 1
        return images, labels.to(self._device, non_blocking=True)

    def micro_batches(self, real):
        """Split a batch into forward passes, each with latents and labels drawn for it.

        Returns:
            List of dicts real_img, real_c, gen_z [n, z_dim] ~ N(0, 1), gen_c [n, c_dim] with
            the frequencies of the data set.
        """
        images, labels = real
        gen_z = torch.randn([len(images), self._z_dim], device=self._device)
        gen_c = self._draw_labels(len(images))
        parts = (t.split(self._batch_gpu) for t in (images, labels, gen_z, gen_c))
        names = ("real_img", "real_c", "gen_z", "gen_c")
        return [dict(zip(names, part, strict=True)) for part in zip(*parts, strict=True)]

    def _draw_labels(self, count):
        """Labels [count, c_dim] drawn as one indexed tensor."""
        drawn = torch.randint(len(self._labels), [count], device=self._device)
        labels = self._labels[drawn]
        if self._one_hot:
            labels = torch.nn.functional.one_hot(labels, self._label_dim)
        return labels.to(torch.float32)
