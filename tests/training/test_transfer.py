import logging
import os
import pickle
import re

import pytest
import torch

import legacy
from dnnlib.util import DownloadError
from tests import tiny
from tests.hostile_pickles import HOSTILE
from training import transfer
from training.networks import Discriminator, Generator
from training.run import snapshot_file
from training.run.snapshot_file import SnapshotError, save_snapshot
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS
from training.transfer import TransferError, load_weights, read_snapshot


@pytest.fixture
def snapshot(tmp_path):
    G, D = tiny.networks()
    path = tmp_path / "net.pkl"
    save_snapshot(path, G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    return str(path)


@pytest.fixture
def model(tmp_path):
    data = tiny.write_data(tmp_path / "tiny.zip")
    torch.manual_seed(7)
    return tiny.model(
        data, z_dim=4, w_dim=4, mapping_layers=1, g_scale=1 / 512, d_scale=1 / 512, d_arch="resnet"
    )


def test_read_snapshot(snapshot):
    assert read_snapshot(snapshot)["G_ema"].img_resolution == 8


def test_official_names_stand_for_urls(snapshot, monkeypatch):
    asked = []
    monkeypatch.setattr(
        snapshot_file, "open_url", lambda url: asked.append(url) or open(snapshot, "rb")
    )
    read_snapshot("lsundog256")
    read_snapshot("https://example.com/net.pkl")
    assert asked == [OFFICIAL_SNAPSHOTS["lsundog256"], "https://example.com/net.pkl"]


def test_failed_download(monkeypatch):
    def fail(url):
        raise DownloadError(f"cannot download {url} (no route)")

    monkeypatch.setattr(snapshot_file, "open_url", fail)
    with pytest.raises(SnapshotError, match="--resume=ffhq256: cannot download https://.*no route"):
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
    with pytest.raises(SnapshotError) as caught:
        read_snapshot(str(path))
    assert f"--resume={path}" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_and_other_schemes(tmp_path):
    with pytest.raises(SnapshotError, match="Is a directory"):
        read_snapshot(str(tmp_path))
    with pytest.raises(SnapshotError, match="only http, https and local paths"):
        read_snapshot("ftp://example.com/net.pkl")


def test_all_three_networks_take_the_weights(model, caplog):
    G, D = tiny.networks(seed=1)
    G_ema, _ = tiny.networks(seed=2)
    networks = {"G": G, "D": D, "G_ema": G_ema}
    with caplog.at_level(logging.INFO, logger="training.transfer"):
        load_weights(model.nets, networks)
    for name, net in model.nets.items():
        for tensor, value in net.state_dict().items():
            assert torch.equal(value, networks[name].state_dict()[tensor]), (name, tensor)
    assert not any(p.requires_grad for p in model.parts.G.parameters())
    assert len(caplog.messages) == 1, "there is no table where all fits"
    count = len(D.state_dict())
    assert f"{count} of {count} of D" in caplog.text


def loaded_table(nets, networks, caplog):
    """Load; returns the rows of the table of what does not fit, as lists of words."""
    with caplog.at_level(logging.INFO, logger="training.transfer"):
        load_weights(nets, networks)
    lines = caplog.messages[-1].splitlines()
    assert lines[1].split() == ["network", "tensor", "snapshot", "this", "run"]
    return [re.split(r"  +", line) for line in lines[2:]]


def test_another_resolution_shares_what_it_can(model, caplog):
    G, D = tiny.networks(resolution=16, seed=1)
    for p in G.synthesis.b8.parameters():
        p.data.fill_(0.25)
    before = {n: v.clone() for n, v in model.parts.D.b8.fromrgb.state_dict().items()}
    rows = loaded_table(model.nets, {"G": G, "D": D, "G_ema": G}, caplog)
    assert (model.parts.G.synthesis.b8.conv0.weight == 0.25).all()
    assert torch.equal(model.parts.D.b4.conv.weight, D.b4.conv.weight)
    for name, value in model.parts.D.b8.fromrgb.state_dict().items():
        assert torch.equal(value, before[name])
    count = {net: len(part.state_dict()) for net, part in (("G", G.synthesis.b16), ("D", D.b16))}
    assert rows == [
        ["G, G_ema", "synthesis.b16.*", f"{count['G']} tensors", "-"],
        ["D", "b8.fromrgb.*", "-", f"{len(before)} tensors"],
        ["D", "b16.*", f"{count['D']} tensors", "-"],
    ]


def test_from_unconditional_to_conditional_and_to_more_classes(model, caplog):
    G, D = tiny.networks(c_dim=3, seed=1)
    conditional = {"G": G, "D": D, "G_ema": G}
    rows = loaded_table(model.nets, conditional, caplog)
    assert torch.equal(model.parts.G.synthesis.b8.conv0.weight, G.synthesis.b8.conv0.weight)
    assert ["G, G_ema", "mapping.fc0.weight", "[4, 8]", "[4, 4]"] in rows
    assert ["G, G_ema", "mapping.embed.*", "2 tensors", "-"] in rows

    caplog.clear()
    G_10, D_10 = tiny.networks(c_dim=10, seed=2)
    rows = loaded_table({"G": G_10, "D": D_10, "G_ema": G_10}, conditional, caplog)
    assert ["G, G_ema", "mapping.embed.weight", "[4, 3]", "[4, 10]"] in rows
    assert torch.equal(D_10.b4.out.weight, D.b4.out.weight)


def test_long_tables_end_with_a_count(caplog, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ROWS", 2)
    G, D = tiny.networks()
    wide = Generator(
        z_dim=4,
        c_dim=0,
        w_dim=4,
        img_resolution=8,
        img_channels=1,
        mapping_kwargs=dict(num_layers=1),
        synthesis_kwargs=dict(channel_base=256, channel_max=32),
    )
    wide.synthesis.b4.conv1 = G.synthesis.b4.conv1  # something has to fit
    rows = loaded_table({"G": G, "D": D, "G_ema": G}, {"G": wide, "D": D, "G_ema": wide}, caplog)
    assert len(rows) == 3 and re.fullmatch(r"\.\.\. and \d+ more", rows[2][0])


def test_a_snapshot_that_shares_no_layer_is_refused_and_changes_nothing(model):
    G, _ = tiny.networks()
    wide = Discriminator(0, 8, 1, channel_base=256, channel_max=32)
    before = {n: v.clone() for n, v in model.parts.G.state_dict().items()}
    with pytest.raises(TransferError) as caught:
        load_weights(model.nets, {"G": G, "D": wide, "G_ema": G})
    assert "no layer of D has its shape" in str(caught.value)
    assert "--d-scale" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(v, before[n]) for n, v in model.parts.G.state_dict().items())


def test_truncated_snapshots(snapshot):
    os.truncate(snapshot, os.path.getsize(snapshot) // 2)
    with pytest.raises(SnapshotError, match="truncated"):
        read_snapshot(snapshot)


@pytest.mark.parametrize("name", ["os.system", "in a storage", "module_src"])
def test_hostile_pickles_run_nothing(tmp_path, name):
    make, named, _ = HOSTILE[name]
    (tmp_path / "net.pkl").write_bytes(make(tmp_path / "sentinel"))
    with pytest.raises(SnapshotError, match=named) as caught:
        read_snapshot(str(tmp_path / "net.pkl"))
    assert isinstance(caught.value.__cause__, legacy.UnsafePickleError)
    assert not (tmp_path / "sentinel").exists()
