import http.server
import itertools
import re
import shutil
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnlib.util import cache_path
from metrics import MetricError, detectors
from metrics.detector import Detector
from metrics.detectors import STANDARD_URLS, load_detector
from tests import make_data, tiny

CPU = torch.device("cpu")
numbers = itertools.count()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return tiny.write_detector(tmp_path_factory.mktemp("detector") / "digits.pt")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    import requests

    def get(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", get)


def images(channels=3, size=8, count=5):
    pixels = make_data.pixels(count, size, channels).reshape(count, size, size, channels)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2))


def test_the_official_addresses():
    assert set(STANDARD_URLS.values()) == {
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt",
    }


def test_outputs(digits):
    detector = load_detector("inception", digits, CPU)
    assert detector.name == "digits" and len(detector.sha256) == 64
    features = detector(images(), "features")
    assert features.shape == (5, 64) and features.dtype == np.float32
    probabilities = detector(images(), "probabilities")
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert detector(images(), "lpips").ndim == 2


@pytest.mark.parametrize(
    ("file", "name"), [("a b@c.pt", "a_b_c"), (".pt", "detector"), ("net.ts", "net.ts")]
)
def test_the_name_of_a_detector_is_fit_for_a_file(digits, tmp_path, file, name):
    copy = str(shutil.copy(digits, tmp_path / file))
    assert load_detector("inception", copy, CPU).name == name


def test_grey_images_are_repeated_to_three_channels(digits):
    detector = load_detector("inception", digits, CPU)
    grey = images(channels=1)
    np.testing.assert_array_equal(
        detector(grey, "features"), detector(grey.repeat(1, 3, 1, 1), "features")
    )


def test_offline_the_message_names_file_url_and_folder(offline, cache):
    with pytest.raises(MetricError) as error:
        load_detector("inception", None, CPU)
    message = str(error.value)
    assert STANDARD_URLS["inception"] in message and str(cache) in message
    assert cache_path(STANDARD_URLS["inception"]).name in message
    assert message.count("https://") == 1 and message.count(str(cache)) == 1
    assert "metrics.train_detector" in message and "\n" not in message


def put_in_cache(source, standard="inception"):
    path = cache_path(STANDARD_URLS[standard])
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


def test_the_file_at_the_official_address_is_the_standard_one(offline, digits, monkeypatch):
    monkeypatch.setattr(detectors, "_STANDARD_WIDTHS", {"inception": {"features": 64}})
    put_in_cache(digits)
    assert load_detector("inception", None, CPU).name == ""


def test_an_equal_file_elsewhere_is_standard_too_and_another_is_not(offline, digits, tmp_path):
    copy = str(shutil.copy(digits, tmp_path / "copy.pt"))
    assert load_detector("inception", copy, CPU).name == "copy", "no official one to compare with"
    put_in_cache(digits)
    assert load_detector("inception", copy, CPU).name == ""
    other = tiny.write_detector(tmp_path / "other.pt", seed=1)
    assert load_detector("inception", other, CPU).name == "other"


def test_a_wrong_file_under_the_official_name_shows(offline, digits):
    put_in_cache(digits)
    detector = load_detector("inception", None, CPU)
    with pytest.raises(MetricError, match="not the standard detector: 64 features instead of 20"):
        detector(images(), "features")


def test_a_detector_by_url_is_downloaded_once(digits, cache):
    content, calls = Path(digits).read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            calls.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/net.pt"
        for _ in range(2):
            assert load_detector("vgg16", url, CPU).name == "net"
    finally:
        server.shutdown()
        server.server_close()
    assert calls == ["/net.pt"]


def broken(tmp_path, digits, how):
    path = tmp_path / "broken.pt"
    data = Path(digits).read_bytes()
    if how == "zip":
        make_data.write_zip(path, {"a/data.pkl": b""})
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": data[: len(data) // 2]}[how])
    return path


@pytest.mark.parametrize("how", ["empty", "text", "cut", "zip"])
def test_files_that_are_no_detectors(tmp_path, digits, how):
    path = broken(tmp_path, digits, how)
    with pytest.raises(MetricError, match="no usable TorchScript file") as error:
        load_detector("inception", str(path), CPU)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_damaged_member(tmp_path, digits):
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(digits) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, b"?" * len(data) if name.endswith("data.pkl") else data)
    with pytest.raises(MetricError, match="no usable TorchScript file"):
        load_detector("inception", str(path), CPU)


def test_a_pickle_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pt"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(MetricError, match="not a complete zip"):
        load_detector("inception", str(path), CPU)
    assert not marker.exists()


def test_a_damaged_download_says_what_to_remove(offline):
    path = cache_path(STANDARD_URLS["vgg16"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    with pytest.raises(MetricError, match=re.escape(f"remove {path} to download it again")):
        load_detector("vgg16", None, CPU)


def test_a_missing_file(tmp_path):
    with pytest.raises(MetricError, match="cannot read --detector=.*No such file"):
        load_detector("inception", str(tmp_path / "no.pt"), CPU)
    with pytest.raises(MetricError, match="only http, https"):
        load_detector("inception", "ftp://example.org/a.pt", CPU)


def scripted(tmp_path, source):
    """Save a module whose forward() is the given TorchScript source."""
    module = type(f"Own{next(numbers)}", (torch.nn.Module,), {})()  # TorchScript types need names
    with pytest.warns(DeprecationWarning):
        module = torch.jit.script(module)
        module.define(source)
        torch.jit.save(module, str(tmp_path / "own.pt"))
    return str(tmp_path / "own.pt")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x.float().flatten(1) / 0.0", "output for image 7 is not finite"),
        ("return x.float()", r"returned \[5, 3, 8, 8\] for 5 images"),
        ("return x.float().flatten(1) @ x.float()", "fails: "),
    ],
)
def test_detectors_that_misbehave(tmp_path, body, message):
    source = f"def forward(self, x, return_features: bool = False):\n    {body}\n"
    detector = load_detector("inception", scripted(tmp_path, source), CPU)
    with pytest.raises(MetricError, match=message) as error:
        detector(images().add_(1).clamp_(1), "features", start=7)
    assert "\n" not in str(error.value)


class Greedy(torch.nn.Module):
    """Has memory for two images at a time."""

    def __init__(self, error):
        super().__init__()
        self.error, self.seen = error, []

    def forward(self, images, return_features: bool = False):
        if len(images) > 2:
            raise self.error
        self.seen.append(len(images))
        return images.float().flatten(1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("interpreter: CUDA out of memory.")]
)
def test_a_batch_too_large_for_memory_is_halved(error):
    network = Greedy(error)
    detector = Detector(network, "greedy", "ab", "greedy.pt", CPU)
    np.testing.assert_array_equal(detector(images(), "features"), images().flatten(1))
    assert network.seen == [2, 2, 1]


def test_a_batch_of_ones_own():
    network = Greedy(RuntimeError("too many"))
    Detector(network, "greedy", "ab", "greedy.pt", CPU)(images(), "features", batch=1)
    assert network.seen == [1] * 5


def test_an_output_that_a_detector_lacks(tmp_path):
    source = "def forward(self, x, return_features: bool = False):\n    return x.flatten(1)\n"
    detector = load_detector("inception", scripted(tmp_path, source), CPU)
    with pytest.raises(MetricError, match="has no lpips: its forward.. takes no return_lpips"):
        detector(images(), "lpips")


def test_vgg_is_told_not_to_shrink_images(tmp_path):
    source = (
        "def forward(self, x, resize_images: bool = True, return_lpips: bool = False):\n"
        "    return x.float().flatten(1)[:, :1] * 0 + int(resize_images)\n"
    )
    detector = load_detector("vgg16", scripted(tmp_path, source), CPU)
    assert not detector(images(), "lpips").any()


def test_torch_fidelity_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MetricError, match="pip install torch-fidelity"):
        load_detector("inception", "torch-fidelity", CPU)
    with pytest.raises(MetricError, match="has Inception only; this metric needs vgg16"):
        load_detector("vgg16", "torch-fidelity", CPU)


class FakeInception(torch.nn.Module):
    """The interface of torch-fidelity's network, with a matrix instead of Inception."""

    def __init__(self, name, features_list, weights):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        self.load_state_dict(torch.load(weights, weights_only=True))

    def load_state_dict(self, state):
        self.weight = state["weight"]

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        features = images.float().flatten(1) / 255
        return features, features @ self.weight


@pytest.fixture
def fidelity(monkeypatch, tmp_path):
    url = "https://example.org/weights.pth"
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3, module.FeatureExtractorInceptionV3 = url, FakeInception
    package = types.ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = cache_path(url)
    path.parent.mkdir(parents=True)
    return path


def test_torch_fidelity(fidelity):
    torch.save({"weight": torch.ones(192, 4)}, fidelity)
    detector = load_detector("inception", "torch-fidelity", CPU)
    assert detector.name == "torch-fidelity"
    assert detector(images(1), "features").shape == (5, 192)
    np.testing.assert_allclose(detector(images(), "probabilities"), 0.25, rtol=1e-5)
    with pytest.raises(MetricError, match="has no lpips"):
        detector(images(), "lpips")


def test_weights_of_torch_fidelity_are_not_run(fidelity, tmp_path):
    marker = tmp_path / "ran"
    fidelity.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(MetricError, match="weights of torch-fidelity are damaged"):
        load_detector("inception", "torch-fidelity", CPU)
    assert not marker.exists()


def test_weights_of_torch_fidelity_offline(fidelity, offline):
    with pytest.raises(MetricError, match="cannot download .*weights.pth"):
        load_detector("inception", "torch-fidelity", CPU)
