import logging
import os
import pickle

import pytest
import torch

import legacy
from dnnlib.util import DownloadError
from tests import tiny
from tests.hostile_pickles import HOSTILE
from training import transfer
from training.dataset import ImageFolderDataset
from training.snapshot import save_snapshot
from training.state import create_state
from training.transfer import TransferError, load_weights, read_snapshot
from training.transfer_names import OFFICIAL_SNAPSHOTS


@pytest.fixture
def snapshot(tmp_path):
    G, D = tiny.networks()
    path = tmp_path / "net.pkl"
    save_snapshot(path, G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    return str(path)


@pytest.fixture
def state(tmp_path):
    dataset = ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"))
    config = tiny.config(
        z_dim=4, w_dim=4, mapping_layers=1, g_scale=1 / 512, d_scale=1 / 512, d_arch="resnet"
    )
    torch.manual_seed(7)
    return create_state(config, dataset, torch.device("cpu"))


def test_read_snapshot(snapshot):
    assert read_snapshot(snapshot)["G_ema"].img_resolution == 8


def test_official_names_stand_for_urls(snapshot, monkeypatch):
    asked = []
    monkeypatch.setattr(transfer, "open_url", lambda url: asked.append(url) or open(snapshot, "rb"))
    read_snapshot("lsundog256")
    read_snapshot("https://example.com/net.pkl")
    assert asked == [OFFICIAL_SNAPSHOTS["lsundog256"], "https://example.com/net.pkl"]


def test_failed_download(monkeypatch):
    def fail(url):
        raise DownloadError(f"cannot download {url} (no route)")

    monkeypatch.setattr(transfer, "open_url", fail)
    with pytest.raises(TransferError, match="--resume=ffhq256: cannot download https://.*no route"):
        read_snapshot("ffhq256")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a readable network snapshot"),
        (b"hello", "not a network snapshot: the file starts with b'he'"),
        (pickle.dumps({"G": 1}), "'G' is a int, not a network"),
        (pickle.dumps({"G": os.getcwd}), "getcwd"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "net.pkl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TransferError) as caught:
        read_snapshot(str(path))
    assert f"--resume={path}" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_and_other_schemes(tmp_path):
    with pytest.raises(TransferError, match="Is a directory"):
        read_snapshot(str(tmp_path))
    with pytest.raises(TransferError, match="only http, https and local paths"):
        read_snapshot("ftp://example.com/net.pkl")


def test_all_three_networks_take_the_weights(state):
    G, D = tiny.networks(seed=1)
    G_ema, _ = tiny.networks(seed=2)
    networks = {"G": G, "D": D, "G_ema": G_ema}
    load_weights(state, networks)
    for name, net in state.nets().items():
        for tensor, value in net.state_dict().items():
            assert torch.equal(value, networks[name].state_dict()[tensor]), (name, tensor)
    assert not any(p.requires_grad for p in state.G.parameters())


def test_another_resolution_shares_what_it_can(state, caplog):
    G, D = tiny.networks(resolution=16, seed=1)
    for p in G.synthesis.b8.parameters():
        p.data.fill_(0.25)
    del D.b4
    before = {n: v.clone() for n, v in state.D.b4.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="training.transfer"):
        load_weights(state, {"G": G, "D": D, "G_ema": G})
    assert (state.G.synthesis.b8.conv0.weight == 0.25).all()
    assert all(torch.equal(value, before[n]) for n, value in state.D.b4.state_dict().items())
    # Besides, D reads images at 16x16 there and at 8x8 here.
    count = len(before) + len(state.D.b8.fromrgb.state_dict())
    assert f"left as they are: {count} tensors of D" in caplog.text


def test_other_shapes_are_refused(state):
    G, D = tiny.networks(c_dim=3)
    with pytest.raises(TransferError) as caught:
        load_weights(state, {"G": G, "D": D, "G_ema": G})
    assert "does not fit this run (G: mapping.fc0.weight has shape" in str(caught.value)
    assert "labels" in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_snapshots(snapshot):
    os.truncate(snapshot, os.path.getsize(snapshot) // 2)
    with pytest.raises(TransferError, match="truncated"):
        read_snapshot(snapshot)


@pytest.mark.parametrize("name", ["os.system", "in a storage", "module_src"])
def test_hostile_pickles_run_nothing(tmp_path, name):
    make, named, _ = HOSTILE[name]
    (tmp_path / "net.pkl").write_bytes(make(tmp_path / "sentinel"))
    with pytest.raises(TransferError, match=named) as caught:
        read_snapshot(str(tmp_path / "net.pkl"))
    assert isinstance(caught.value.__cause__, legacy.UnsafePickleError)
    assert not (tmp_path / "sentinel").exists()
