import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import generate
from training.networks import Discriminator, Generator
from training.run.snapshot_file import save_snapshot

ROOT = Path(generate.__file__).parent


def make_snapshot(path, c_dim=0, img_channels=3):
    torch.manual_seed(0)
    G = Generator(
        z_dim=8,
        c_dim=c_dim,
        w_dim=8,
        img_resolution=8,
        img_channels=img_channels,
        mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs=dict(channel_base=64),
    ).eval()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    G.mapping.w_avg.normal_()
    D = Discriminator(c_dim, 8, img_channels, channel_base=64)
    save_snapshot(path, G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    return G


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    plain = make_snapshot(folder / "plain.pkl")
    conditional = make_snapshot(folder / "conditional.pkl", c_dim=3, img_channels=1)
    return {
        "plain": (folder / "plain.pkl", plain),
        "conditional": (folder / "conditional.pkl", conditional),
    }


def run(*args):
    return CliRunner().invoke(generate.main, [str(arg) for arg in args])


def generated(network, outdir, *args, code=0):
    result = run(f"--network={network}", f"--outdir={outdir}", "--device=cpu", *args)
    assert result.exit_code == code, result.output
    assert code or result.exception is None
    return result


def read(path):
    with PIL.Image.open(path) as picture:
        return picture.mode, np.array(picture).astype(int)


def expected(G, seed, class_idx=None, psi=1.0):
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim))
    c = torch.zeros(1, G.c_dim)
    if class_idx is not None:
        c[0, class_idx] = 1
    with torch.no_grad():
        image = G(z, c, truncation_psi=psi, noise_mode="const")[0]
    return (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("1,2,5-9", [1, 2, 5, 6, 7, 8, 9]),
        ("3-3", [3]),
        (" 2 , 4 - 5 ", [2, 4, 5]),
        ("4294967295", [4294967295]),
        ("3,1-4,3", [3, 1, 2, 4]),
    ],
)
def test_parse_seeds(text, seeds):
    assert generate.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no seed"),
        ("1,,2", "no seed"),
        ("a", "'a' is no seed"),
        ("-3", "no seed"),
        ("1.5", "no seed"),
        ("9-5", "write 5-9"),
        ("4294967296", "above 4294967295"),
        ("0-400000000", "more than 1000000 seeds"),
        ("0-999999,1000000", "more than 1000000 seeds"),
    ],
)
def test_bad_seeds(text, message, nets, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate.parse_seeds(text)
    result = generated(nets["plain"][0], tmp_path / "out", f"--seeds={text}", code=2)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_every_seed_is_made_and_counted_once(nets, tmp_path):
    result = generated(nets["plain"][0], tmp_path, "--seeds=1,1-2,1")
    assert "Saved 2 images" in result.output


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_seeds_become_images(nets, tmp_path, batch):
    network, G = nets["plain"]
    result = generated(network, tmp_path / "a" / "b", "--seeds=0,3-4,12345", f"--batch={batch}")
    assert "Saved 4 images" in result.output
    names = ["seed0000.png", "seed0003.png", "seed0004.png", "seed12345.png"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == names
    for seed, name in zip((0, 3, 4, 12345), names, strict=True):
        mode, image = read(tmp_path / "a" / "b" / name)
        assert mode == "RGB"
        assert np.abs(image - expected(G, seed)).max() <= 1  # the batch may alter the last bit


def test_truncation(nets, tmp_path):
    network, G = nets["plain"]
    generated(network, tmp_path, "--seeds=5", "--trunc=0.5")
    assert np.abs(read(tmp_path / "seed0005.png")[1] - expected(G, 5, psi=0.5)).max() <= 1


def test_conditional_network_and_grey_images(nets, tmp_path):
    network, G = nets["conditional"]
    generated(network, tmp_path, "--seeds=1-3", "--class=2", "--batch=2")
    for seed in (1, 2, 3):
        mode, image = read(tmp_path / f"seed{seed:04d}.png")
        assert mode == "L"
        assert np.abs(image - expected(G, seed, class_idx=2)[:, :, 0]).max() <= 1


def test_random_noise_follows_from_the_seed_alone(nets, tmp_path):
    network, G = nets["plain"]
    generated(network, tmp_path / "a", "--seeds=0-4", "--noise-mode=random", "--batch=4")
    generated(network, tmp_path / "b", "--seeds=9,3", "--noise-mode=random", "--batch=1")
    first, second = (read(tmp_path / x / "seed0003.png")[1] for x in "ab")
    assert np.array_equal(first, second)
    assert np.abs(first - expected(G, 3)).max() > 1


def test_grid(nets, tmp_path):
    network, _ = nets["plain"]
    generated(network, tmp_path, "--grid", "--seeds=0-4")
    _, grid = read(tmp_path / "grid.png")
    assert grid.shape == (16, 24, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        cell = grid[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        assert np.array_equal(cell, read(tmp_path / f"seed{index:04d}.png")[1])
    assert (grid[8:, 16:] == 0).all()
    generated(network, tmp_path, "--grid=sheet.png", "--seeds=0")
    assert (tmp_path / "sheet.png").exists()


def test_projected_latents(nets, tmp_path):
    network, G = nets["plain"]
    with torch.no_grad():
        ws = G.mapping(torch.from_numpy(np.random.RandomState(2).randn(1, 8)), None)
    np.savez(tmp_path / "w.npz", w=ws.repeat(3, 1, 1).numpy())
    result = generated(
        network, tmp_path / "out", f"--projected-w={tmp_path}/w.npz", "--seeds=1", "--grid"
    )
    assert "Warning: --seeds has no effect" in result.output
    names = ["grid.png", "proj00.png", "proj01.png", "proj02.png"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert np.abs(read(tmp_path / "out" / "proj02.png")[1] - expected(G, 2)).max() <= 1


@pytest.mark.parametrize("dtype", [">f4", "f2", "longdouble"])
def test_projected_latents_of_any_float_type(nets, tmp_path, dtype):
    np.savez(tmp_path / "w.npz", w=np.ones((1, 4, 8), dtype))
    generated(nets["plain"][0], tmp_path / "out", f"--projected-w={tmp_path}/w.npz")
    assert (tmp_path / "out" / "proj00.png").exists()


def test_random_noise_of_latents_follows_from_their_place(nets, tmp_path):
    network, G = nets["plain"]
    np.savez(tmp_path / "w.npz", w=np.ones((2, 4, 8), np.float32))
    generated(network, tmp_path, f"--projected-w={tmp_path}/w.npz", "--noise-mode=random")
    first, second = (read(tmp_path / f"proj0{i}.png")[1] for i in (0, 1))
    torch.manual_seed(1)
    with torch.no_grad():
        image = G.synthesis(torch.ones(1, 4, 8), noise_mode="random")[0]
    image = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.abs(second - image).max() <= 1 < np.abs(first - image).max()


def test_class_for_an_unconditional_network_is_a_warning(nets, tmp_path):
    result = generated(nets["plain"][0], tmp_path, "--seeds=1", "--class=0")
    assert "Warning: --class has no effect" in result.output
    assert (tmp_path / "seed0001.png").exists()


def one_line(result, *parts):
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for part in parts:
        assert str(part) in last
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("net", "args", "part"),
    [
        ("plain", [], "--seeds"),
        ("conditional", ["--seeds=1"], "conditional: give --class, 0 to 2"),
        ("conditional", ["--seeds=1", "--class=3"], "--class=3 is out of range"),
        ("conditional", ["--seeds=1", "--class=-1"], "--class=-1 is out of range"),
        ("plain", ["--seeds=1", "--device=meta"], "--device must be cpu, cuda or cuda:N, not meta"),
        ("plain", ["--seeds=1", "--trunc=nan"], "--trunc"),
        ("plain", ["--seeds=1", "--batch=0"], "--batch"),
        ("plain", ["--seeds=1", "--noise-mode=x"], "--noise-mode"),
    ],
)
def test_wrong_usage_exits_with_2(nets, tmp_path, net, args, part):
    one_line(generated(nets[net][0], tmp_path / "out", *args, code=2), part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("grid", ["seed0001.png", "none/grid.png", ".", "../out/seed0001.png"])
def test_grid_that_cannot_be_written(nets, tmp_path, grid):
    outdir = tmp_path / "out"
    one_line(generated(nets["plain"][0], outdir, "--seeds=1", f"--grid={grid}", code=2), "--grid")
    assert not outdir.exists()


def test_networks_that_make_no_pictures(tmp_path):
    make_snapshot(tmp_path / "x.pkl", img_channels=2)
    result = generated(tmp_path / "x.pkl", tmp_path / "out", "--seeds=1", code=1)
    one_line(result, "x.pkl", "no generator of grey or RGB images")


def test_array_in_place_of_an_archive(nets, tmp_path):
    np.save(tmp_path / "w.npy", np.zeros((1, 5, 8)))
    args = (f"--projected-w={tmp_path}/w.npy", "--seeds=1")
    one_line(generated(nets["plain"][0], tmp_path / "out", *args, code=1), "w.npy", "numpy.savez")


def test_missing_required_options():
    one_line(run("--outdir=x", "--seeds=1"), "--network")
    one_line(run("--network=x", "--seeds=1"), "--outdir")


def test_missing_network_file(tmp_path):
    missing = tmp_path / "none.pkl"
    one_line(generated(missing, tmp_path, "--seeds=1", code=1), missing, "No such file")


def test_file_that_is_no_snapshot(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"<!DOCTYPE html>")
    result = generated(tmp_path / "x.pkl", tmp_path, "--seeds=1", code=1)
    one_line(result, "x.pkl", "not a network snapshot")


class Hostile:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_hostile_pickle_is_refused_by_name(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"G_ema": Hostile(tmp_path / "made")}))
    result = generated(tmp_path / "x.pkl", tmp_path, "--seeds=1", code=1)
    one_line(result, "x.pkl", f"{os.mkdir.__module__}.mkdir")
    assert not (tmp_path / "made").exists()


def test_url_of_an_unknown_kind(tmp_path):
    one_line(generated("ftp://host/x.pkl", tmp_path, "--seeds=1", code=1), "only http, https")


def test_outdir_that_cannot_be_written(nets, tmp_path):
    (tmp_path / "file").write_text("x")
    result = generated(nets["plain"][0], tmp_path / "file", "--seeds=1", code=1)
    one_line(result, tmp_path / "file", "Choose another folder")


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        (None, "No such file"),
        ({"v": np.zeros((1, 5, 8))}, "w is not a file in the archive"),
        ({"w": np.zeros((5, 8))}, "shape [5, 8]"),
        ({"w": np.zeros((1, 6, 8))}, "shape [1, 6, 8]"),
        ({"w": np.zeros((0, 4, 8))}, "shape [0, 4, 8]"),
        ({"w": np.zeros((1, 4, 8), int)}, "int64"),
        ({"w": np.array([{}], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_unusable_projected_latents(nets, tmp_path, arrays, part):
    if arrays is not None:
        np.savez(tmp_path / "w.npz", **arrays)
    result = generated(
        nets["plain"][0], tmp_path / "out", f"--projected-w={tmp_path}/w.npz", code=1
    )
    one_line(result, "w.npz", part)


def test_help_does_not_import_torch():
    script = (
        "import sys, generate\n"
        "generate.main(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'requests' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("network", "seeds", "trunc", "class", "noise-mode", "projected-w", "outdir"):
        assert f"--{option}" in done.stdout
