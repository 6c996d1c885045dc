import pytest
import torch

from models.latent_batches import LatentBatches
from tests import make_data, tiny
from training.dataset import ImageFolderDataset


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"), use_labels=True)


def latents(dataset, **options):
    config = tiny.config(**options)
    return LatentBatches(config, dataset, config.z_dim, torch.device("cpu"))


def test_micro_batches(dataset):
    batches = latents(dataset, cfg="paper256", batch_gpu=8, batch=16, z_dim=512)
    real = (torch.arange(16.0).reshape(16, 1, 1, 1), torch.eye(16))
    first, second = batches.split(*real)
    assert first.keys() == {"real_img", "real_c", "gen_z", "gen_c"}
    assert torch.equal(torch.cat([first["real_img"], second["real_img"]]), real[0])
    assert torch.equal(torch.cat([first["real_c"], second["real_c"]]), real[1])
    for part in (first, second):
        assert part["gen_z"].shape == (8, 512) and part["gen_c"].shape == (8, 3)
        assert abs(part["gen_z"].mean()) < 0.1 and abs(part["gen_z"].std() - 1) < 0.1
    assert not torch.equal(first["gen_z"], second["gen_z"])
    again, _ = batches.split(*real)
    assert not torch.equal(first["gen_z"], again["gen_z"]), "each phase draws its own latents"


def draw_labels(dataset, count):
    torch.manual_seed(0)
    batches = latents(dataset, batch=count)
    (part,) = batches.split(torch.zeros(count, 1, 8, 8), torch.zeros(count, 3))
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
