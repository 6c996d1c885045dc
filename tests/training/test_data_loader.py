import multiprocessing
import os

import numpy as np
import pytest
import torch

from tests import make_data, tiny
from training.data_loader import RealImages
from training.dataset import DatasetError, ImageFolderDataset, InfiniteSampler

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"), use_labels=True)


def loader(dataset, start=0, **options):
    return RealImages(dataset, tiny.config(cond=True, **options), CPU, start=start)


def take(dataset, count, **options):
    with loader(dataset, **options) as batches:
        return [next(batches) for _ in range(count)]


def test_batches_follow_the_sampler(dataset):
    order = iter(InfiniteSampler(len(dataset), seed=3))
    for images, labels in take(dataset, 4, seed=3):
        assert images.shape == (8, 1, 8, 8) and images.dtype == torch.float32
        for image, label in zip(images, labels, strict=True):
            pixels, expected = dataset[next(order)]
            np.testing.assert_allclose(image.numpy(), pixels / 127.5 - 1, atol=1e-6)
            np.testing.assert_array_equal(label.numpy(), expected)


def test_images_span_minus_one_to_one(tmp_path):
    extremes = np.zeros((2, 8, 8), np.uint8)
    extremes[:, 4:] = 255
    files = make_data.archive_files(extremes)
    data = ImageFolderDataset(make_data.write_zip(tmp_path / "e.zip", files))
    ((images, labels),) = take(data, 1, batch=2)
    assert (images.min().item(), images.max().item()) == (-1, 1)
    assert labels.shape == (2, 0)


def test_a_stream_can_be_taken_up_where_it_was_left(dataset):
    whole = take(dataset, 5)
    rest = take(dataset, 2, start=24)
    for (images, labels), (again, labels_again) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again) and torch.equal(labels, labels_again)


def test_each_process_loads_its_share_of_the_batch(dataset):
    ((images, _),) = take(dataset, 1, batch=16, gpus=2)
    assert len(images) == 8


def test_three_workers_on_any_machine(dataset):
    loader(dataset, workers=3)  # PyTorch's advice on machines of fewer cores would be an error here


def test_micro_batches(dataset):
    config = dict(cfg="paper256", batch_gpu=8, batch=16, z_dim=512)
    batches = loader(dataset, **config)
    real = (torch.arange(16.0).reshape(16, 1, 1, 1), torch.eye(16))
    first, second = batches.micro_batches(real)
    assert first.keys() == {"real_img", "real_c", "gen_z", "gen_c"}
    assert torch.equal(torch.cat([first["real_img"], second["real_img"]]), real[0])
    assert torch.equal(torch.cat([first["real_c"], second["real_c"]]), real[1])
    for part in (first, second):
        assert part["gen_z"].shape == (8, 512) and part["gen_c"].shape == (8, 3)
        assert abs(part["gen_z"].mean()) < 0.1 and abs(part["gen_z"].std() - 1) < 0.1
    assert not torch.equal(first["gen_z"], second["gen_z"])
    again, _ = batches.micro_batches(real)
    assert not torch.equal(first["gen_z"], again["gen_z"]), "each phase draws its own latents"


def draw_labels(dataset, count):
    torch.manual_seed(0)
    batches = loader(dataset, batch=count)
    (part,) = batches.micro_batches((torch.zeros(count, 1, 8, 8), torch.zeros(count, 3)))
    return part["gen_c"]


def test_class_labels_have_the_frequencies_of_the_data(tmp_path):
    files = make_data.archive_files(make_data.pixels(10, 8, 1), [0] * 7 + [2] * 3)
    path = make_data.write_zip(tmp_path / "skewed.zip", files)
    drawn = draw_labels(ImageFolderDataset(path, use_labels=True), 4000)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn.sum(dim=1), torch.ones(4000))
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.7, 0, 0.3], abs=0.03)


def test_vector_labels_are_rows_of_the_data(tmp_path):
    files = make_data.archive_files(make_data.pixels(2, 8, 1), [[0.5, -1.0], [2.0, 3.0]])
    path = make_data.write_zip(tmp_path / "vectors.zip", files)
    drawn = draw_labels(ImageFolderDataset(path, use_labels=True), 64)
    assert {tuple(row) for row in drawn.tolist()} == {(0.5, -1.0), (2.0, 3.0)}


def test_labels_of_a_subset_come_from_the_subset(tmp_path):
    path = tiny.write_data(tmp_path / "tiny.zip")
    data = ImageFolderDataset(path, use_labels=True, max_size=1, random_seed=0)
    drawn = draw_labels(data, 64)
    assert drawn.shape == (64, 3) and len(drawn.unique(dim=0)) == 1


def test_without_labels(tmp_path):
    data = ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"))
    assert draw_labels(data, 4).shape == (4, 0)


@tiny.starts_workers
def test_workers_change_nothing_and_end_with_the_context(dataset):
    torch.testing.assert_close(take(dataset, 4), take(dataset, 4, workers=2), rtol=0, atol=0)
    assert not multiprocessing.active_children()


@tiny.starts_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_named(tmp_path, workers):
    files = make_data.archive_files(make_data.pixels(8, 8, 1))
    name = "00000/img00000003.png"
    files[name] = files[name][:45]  # the header is whole
    data = ImageFolderDataset(make_data.write_folder(tmp_path, files))
    with pytest.raises(DatasetError, match=f"'{name}' in .* cannot be decoded") as caught:
        take(data, 1, workers=workers)
    assert caught.value.__traceback__ and not multiprocessing.active_children()


def test_more_workers_than_cores_is_no_reason_to_warn(tmp_path, recwarn):
    dataset = ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"))
    with RealImages(dataset, tiny.config(workers=(os.cpu_count() or 1) + 1), CPU) as data:
        next(data)
    assert not [w for w in recwarn if "DataLoader" in str(w.message)]
