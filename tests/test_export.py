import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import export
from dnnlib import families
from tests import tiny
from tests.pipes import make_pipe
from tests.train_cli import snapshot
from training.run.snapshot_file import save_snapshot


def run(*args):
    return CliRunner().invoke(export.main, [str(arg) for arg in args])


def save(path):
    G, D = tiny.networks(c_dim=3)
    G_ema, _ = tiny.networks(c_dim=3, seed=1)
    kwargs = dict(class_name="training.dataset.ImageFolderDataset", path="x.zip", xflip=True)
    pipe = make_pipe(p=0.25, xflip=1, scale=1)
    save_snapshot(path, G=G, D=D, G_ema=G_ema, augment_pipe=pipe, training_set_kwargs=kwargs)


def test_there_and_back(tmp_path):
    save(tmp_path / "net.pkl")
    for source, dest in (("net.pkl", "net.safetensors"), ("net.safetensors", "back.pkl")):
        result = run(f"--network={tmp_path / source}", f"--dest={tmp_path / dest}")
        assert result.exit_code == 0, result.output
        assert result.output == f"Wrote {tmp_path / dest}\n"
    first, back = snapshot(tmp_path / "net.pkl"), snapshot(tmp_path / "back.pkl")
    tensors = load_file(tmp_path / "net.safetensors")
    counted = 0
    for name in ("G", "D", "G_ema", "augment_pipe"):
        own, other = first[name].state_dict(), back[name].state_dict()
        assert own.keys() == other.keys()
        for key in own:
            assert torch.equal(own[key], other[key]) and torch.equal(
                own[key], tensors[f"{name}.{key}"]
            )
        counted += len(own)
    assert len(tensors) == counted
    assert first["training_set_kwargs"] == back["training_set_kwargs"]
    z, c = torch.randn(2, 4), torch.eye(3)[:2]
    images = [nets["G_ema"](z, c, noise_mode="const") for nets in (first, back)]
    assert torch.equal(*images)


def test_without_augmentation(tmp_path):
    G, D = tiny.networks()
    save_snapshot(tmp_path / "n.pkl", G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    assert (
        run(f"--network={tmp_path / 'n.pkl'}", f"--dest={tmp_path / 'n.safetensors'}").exit_code
        == 0
    )
    assert (
        run(f"--network={tmp_path / 'n.safetensors'}", f"--dest={tmp_path / 'm.pkl'}").exit_code
        == 0
    )
    assert snapshot(tmp_path / "m.pkl")["augment_pipe"] is None


def test_bad_input(tmp_path):
    save(tmp_path / "net.pkl")
    (tmp_path / "bad.pkl").write_bytes(b"hello")
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    (tmp_path / "own.json").write_text('{"settings": "of another program"}')
    (tmp_path / "bad.json").write_text('{"format": "coopinit-networks-1", "networks": {}}')
    for network, dest, code, message in (
        ("net.pkl", "net.onnx", 2, "must be .safetensors"),
        ("net.pkl", "other.pkl", 2, "must be .safetensors"),
        ("absent.pkl", "net.safetensors", 1, "No such file"),
        ("absent.safetensors", "y.pkl", 1, "No such file"),
        ("bad.pkl", "net.safetensors", 1, "not a network snapshot"),
        ("bad.safetensors", "x.pkl", 1, "bad.safetensors' cannot be used"),
        ("net.pkl", "no/folder/net.safetensors", 1, "No such file"),
        ("net.pkl", "own.safetensors", 1, "own.json' is there, and describes no networks"),
    ):
        result = run(f"--network={tmp_path / network}", f"--dest={tmp_path / dest}")
        assert result.exit_code == code and message in result.output, result.output
        assert isinstance(result.exception, SystemExit)
        assert not (tmp_path / dest).exists() or dest == "other.pkl"


def test_a_family_may_have_other_networks(tmp_path, monkeypatch):
    family = families.FAMILIES["stylegan2"]
    monkeypatch.setitem(families.FAMILIES, "stylegan2", family._replace(others=("F",)))
    G, D = tiny.networks()
    nets = dict(G=G, D=D, G_ema=G, augment_pipe=None, F=D)
    save_snapshot(tmp_path / "n.pkl", training_set_kwargs={}, **nets)
    for source, dest in (("n.pkl", "n.safetensors"), ("n.safetensors", "m.pkl")):
        result = run(f"--network={tmp_path / source}", f"--dest={tmp_path / dest}")
        assert result.exit_code == 0, result.output
    back = snapshot(tmp_path / "m.pkl")["F"].state_dict()
    assert all(torch.equal(value, back[name]) for name, value in D.state_dict().items())
