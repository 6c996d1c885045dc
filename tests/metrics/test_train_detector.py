import numpy as np
import pytest
import torch
from click.testing import CliRunner

from metrics import train_detector
from metrics.classifier import Classifier, Plan, save_detector, train_classifier
from metrics.detectors import load_detector
from tests import make_data, tiny

FAST = ("--steps=2", "--device=cpu")


def bars(count=120, size=8):
    """Two classes that are easy to tell apart: upright and lying bars at random places."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 40, [count, 1, size, size]).astype(np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        place = rng.randint(size)
        (image[0].T if label else image[0])[place] = 250
    return torch.from_numpy(images), torch.from_numpy(labels)


def run(*args):
    return CliRunner().invoke(train_detector.main, [str(arg) for arg in args])


def test_it_learns():
    before = torch.get_rng_state()
    network, accuracy = train_classifier(*bars(), Plan(steps=60, batch=32), progress=False)
    assert accuracy == 1 and not network.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_network():
    plan = Plan(steps=3)
    weights = [train_classifier(*bars(), plan, progress=False)[0].output.weight for _ in range(2)]
    assert torch.equal(*weights)


def test_out_of_time(caplog):
    train_classifier(*bars(), Plan(steps=10**6, seconds=1e-9), progress=False)
    assert "of 1000000 steps: time is up" in caplog.text


def test_images_are_held_out_whatever_their_order():
    images, labels = bars()
    labels = (torch.arange(120) % 10 == 9).long()  # a class that every tenth image is of
    images[labels == 1] = 255
    images[labels == 0] //= 2
    accuracy = train_classifier(images, labels, Plan(steps=40, batch=32), progress=False)[1]
    assert accuracy == 1


def test_no_more_images_than_memory_is_for(tmp_path, monkeypatch):
    data = tiny.write_data(tmp_path / "data.zip", count=40)
    monkeypatch.setattr(train_detector, "_MAX_BYTES", 3 * 8 * 8 * 25)
    done = run(f"--data={data}", f"--out={tmp_path / 'own.pt'}", *FAST)
    assert done.exit_code == 0 and "Training on 25 of 40 images" in done.output


def test_a_saved_detector_says_what_the_network_says(tmp_path):
    network, _ = train_classifier(*bars(), Plan(steps=3), progress=False)
    images = bars(9)[0]
    with torch.no_grad():
        expected = network(images)
        unbiased = (network(images, return_features=True) @ network.output.weight.T).softmax(1)
    save_detector(network, tmp_path / "own.pt")
    detector = load_detector("inception", str(tmp_path / "own.pt"), torch.device("cpu"))
    np.testing.assert_allclose(detector.module(images), expected, rtol=1e-4)
    np.testing.assert_allclose(detector(images, "probabilities"), unbiased, rtol=1e-4)


def test_images_of_another_size_and_colour():
    network = Classifier(3, 3, 8, 8).eval()
    with torch.no_grad():
        for shape in ((2, 1, 8, 8), (2, 3, 20, 12)):
            assert network(torch.zeros(shape, dtype=torch.uint8)).shape == (2, 3)
        grey = Classifier(3, 1, 8, 8).eval()
        same = torch.full([1, 1, 8, 8], 9.0)
        assert torch.allclose(grey(same), grey(same.repeat(1, 3, 1, 1)))


def test_perceptual_vectors_differ_as_images_do():
    network = Classifier(3, 1, 8, 8).eval()
    images, _ = bars(3)
    with torch.no_grad():
        a, b = (network(x, return_lpips=True) for x in (images, images.flip(0)))
    distances = (a - b).square().sum(dim=1)
    assert distances[1] == 0 and distances[0] > 0.01


def test_the_command(tmp_path):
    data = tiny.write_data(tmp_path / "data.zip", count=40)
    done = run(f"--data={data}", f"--out={tmp_path / 'own.pt'}", *FAST)
    assert done.exit_code == 0, done.output
    assert "3 classes, 64 features, accuracy " in done.output and "on 4 images" in done.output
    assert load_detector("vgg16", str(tmp_path / "own.pt"), torch.device("cpu")).name == "own"


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "lacks labels"), ([0] * 5, "has one class"), ([[0.5]] * 5, "vectors, not classes")],
)
def test_data_without_classes(tmp_path, labels, message):
    files = make_data.archive_files(make_data.pixels(5, 8), labels)
    data = make_data.write_zip(tmp_path / "data.zip", files)
    done = run(f"--data={data}", f"--out={tmp_path / 'own.pt'}", *FAST)
    assert done.exit_code == 1 and message in done.output
    assert done.output.strip().splitlines()[-1].startswith("Error: ")


def test_places_that_cannot_be_written(tmp_path):
    data = tiny.write_data(tmp_path / "data.zip")
    done = run(f"--data={data}", f"--out={tmp_path / 'no' / 'own.pt'}", *FAST)
    assert done.exit_code == 2 and "there is no such folder" in done.output
    done = run(f"--data={data}", f"--out={tmp_path}", *FAST)
    assert done.exit_code == 2 and "that is a folder" in done.output
    done = run(f"--data={tmp_path / 'no.zip'}", f"--out={tmp_path / 'own.pt'}", *FAST)
    assert done.exit_code == 1 and "does not exist" in done.output
