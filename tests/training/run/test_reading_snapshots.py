import pytest
import torch

from tests import tiny
from training.run.snapshot_file import SnapshotError, read_networks, read_sampler, save_snapshot

CPU = torch.device("cpu")


def test_the_generator_of_a_snapshot(tmp_path):
    path = tiny.write_snapshot(tmp_path / "net.pkl", "data.zip", c_dim=3)
    sampler, kwargs = read_sampler(path, f"--network={path}", CPU)
    assert sampler.c_dim == 3 and sampler.device == CPU and kwargs["path"] == "data.zip"
    assert not any(p.requires_grad for p in sampler.G.parameters())


def test_what_is_no_generator(tmp_path):
    G, D = tiny.networks()
    path = str(tmp_path / "net.pkl")
    save_snapshot(path, G=G, D=D, G_ema=D, augment_pipe=None, training_set_kwargs={})
    with pytest.raises(SnapshotError, match="its G_ema is no generator of grey or RGB images"):
        read_sampler(path, f"--network={path}", CPU)


def test_the_option_and_a_hint_are_in_the_line(tmp_path):
    path = str(tmp_path / "no.pkl")
    with pytest.raises(SnapshotError, match="^Cannot read --resume=no: No such .*; look[.]$"):
        read_networks(path, "--resume=no", hint="; look")
    with pytest.raises(SnapshotError, match="^Cannot read --x: Is a directory[.]$"):
        read_networks(str(tmp_path), "--x", hint="; look")
