import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import legacy
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator
from training.run.snapshot_file import remove_old_snapshots, save_snapshot

ROOT = Path(__file__).parents[3]


def make_networks(img_channels=3):
    torch.manual_seed(0)
    G = Generator(
        z_dim=8,
        c_dim=2,
        w_dim=8,
        img_resolution=16,
        img_channels=img_channels,
        mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs=dict(channel_base=64, num_fp16_res=2, conv_clamp=256),
    )
    D = Discriminator(2, 16, img_channels, channel_base=64, block_kwargs=dict(freeze_layers=2))
    pipe = AugmentPipe(xflip=1, rotate=1, brightness=1, imgfilter=1, cutout=1)
    for net in (G, D):
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.ndim != 2 or tensor.shape != (4, 4):  # the resampling filters stay
                tensor.data += torch.randn_like(tensor) * 0.1
    return dict(G=G, D=D, G_ema=G, augment_pipe=pipe)


def inputs():
    z = torch.from_numpy(np.random.RandomState(1).randn(2, 8)).float()
    return z, torch.eye(2)


def outputs(nets):
    z, c = inputs()
    image = nets["G_ema"](z, c, truncation_psi=0.7, noise_mode="const")
    return {
        "image": image,
        "logits": nets["D"](image, c),
        "augmented": nets["augment_pipe"](image, debug_percentile=0.3),
    }


KWARGS = dict(class_name="training.dataset.ImageFolderDataset", path="a.zip", max_size=7)


@pytest.fixture
def saved(tmp_path):
    nets = make_networks()
    path = tmp_path / "network-snapshot-000001.pkl"
    save_snapshot(path, **nets, training_set_kwargs=KWARGS)
    return path, nets


def test_snapshot_is_frozen_and_leaves_the_networks_alone(saved):
    path, nets = saved
    assert nets["G"].training
    assert all(p.requires_grad for p in nets["G"].parameters())
    assert os.listdir(path.parent) == [path.name]
    data = pickle.loads(path.read_bytes())
    assert list(data) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    assert type(data["training_set_kwargs"]) is dict
    assert data["training_set_kwargs"] == KWARGS
    for key in ("G", "D", "G_ema", "augment_pipe"):
        assert not any(module.training for module in data[key].modules())
        assert not any(p.requires_grad for p in data[key].parameters())
        assert all(t.dtype == torch.float32 for t in data[key].state_dict().values())


def test_networks_in_other_states_are_saved_as_float32(tmp_path):
    nets = make_networks()
    nets["D"](torch.randn(2, 3, 16, 16), torch.eye(2)).sum().backward()
    nets["D"].half()
    save_snapshot(tmp_path / "a", **nets, training_set_kwargs={})
    D = pickle.loads((tmp_path / "a").read_bytes())["D"]
    assert all(t.dtype == torch.float32 for t in D.state_dict().values())
    assert all(p.grad is None for p in D.parameters())
    assert nets["D"].b16.conv1.weight.dtype == torch.float16


def test_round_trip_gives_the_same_function(saved):
    path, nets = saved
    with open(path, "rb") as file:
        loaded = legacy.load_network_pkl(file)
    expected = outputs({key: net.eval() for key, net in nets.items()})
    for name, value in outputs(loaded).items():
        assert torch.equal(value, expected[name]), name


def test_failed_save_keeps_the_old_snapshot(saved):
    path, nets = saved
    old = path.read_bytes()
    nets["D"].cannot_pickle = lambda: None
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_snapshot(path, **nets, training_set_kwargs={})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


# A program that offers only what the official repo has, under the same names, and executes the
# source inside persistent objects as that repo does. Operators are taken from this project.
OFFICIAL_LIKE = """
import functools, importlib, pickle, sys, types
import numpy as np, torch

root, snapshot_path, inputs_path, outputs_path = sys.argv[1:]
offered = {
    "torch_utils.misc": "constant assert_shape suppress_tracer_warnings profiled_function",
    "torch_utils.ops.upfirdn2d": "setup_filter upfirdn2d filter2d upsample2d downsample2d",
    "torch_utils.ops.bias_act": "bias_act activation_funcs",
    "torch_utils.ops.conv2d_resample": "conv2d_resample",
    "torch_utils.ops.fma": "fma",
    "torch_utils.ops.grid_sample_gradfix": "grid_sample",
    "torch_utils.ops.conv2d_gradfix": "conv2d",
}
sys.path.insert(0, root)
values = {
    module: {name: getattr(importlib.import_module(module), name) for name in names.split()}
    for module, names in offered.items()
}
importlib.import_module("torch_utils.ops.backend").select("ref")  # its modules are gone soon
sys.path.remove(root)
for name in [n for n in sys.modules if n.split(".")[0] in ("torch_utils", "dnnlib", "training")]:
    del sys.modules[name]

def provide(name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)

class EasyDict(dict):
    __getattr__ = dict.__getitem__

def persistent_class(cls):
    class Wrapped(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._init_args, self._init_kwargs = args, kwargs
    Wrapped.__name__ = cls.__name__
    return Wrapped

@functools.cache
def module_of(source):
    name = f"_imported_{abs(hash(source))}"
    module = sys.modules[name] = types.ModuleType(name)
    exec(source, vars(module))
    return module

def _reconstruct_persistent_obj(meta):
    assert set(meta) == {"type", "version", "module_src", "class_name", "state"}
    assert (meta["type"], meta["version"]) == ("class", 6)
    cls = vars(module_of(meta["module_src"]))[meta["class_name"]]
    obj = cls.__new__(cls)
    obj.__setstate__(meta["state"])
    return obj

provide("dnnlib", EasyDict=EasyDict)
provide("dnnlib.util", EasyDict=EasyDict)
provide("torch_utils")
provide("torch_utils.ops")
provide("torch_utils.persistence", persistent_class=persistent_class,
        _reconstruct_persistent_obj=_reconstruct_persistent_obj)
for module, contents in values.items():
    provide(module, **contents)

with open(snapshot_path, "rb") as file:
    data = pickle.load(file)
assert not any(name.startswith("training") for name in sys.modules)
given = np.load(inputs_path)
c = torch.from_numpy(given["c"])
image = data["G_ema"](torch.from_numpy(given["z"]), c, truncation_psi=0.7, noise_mode="const")
kwargs = data["D"]._init_kwargs
again = type(data["D"])(*data["D"]._init_args, **kwargs)  # its classes are usable afresh too
again.load_state_dict(data["D"].state_dict())
np.savez(outputs_path, image=image, logits=again.eval()(image, c).detach(),
         augmented=data["augment_pipe"](image, debug_percentile=0.3))
"""


def test_official_environment_loads_our_snapshot(saved, tmp_path):
    path, nets = saved
    z, c = inputs()
    np.savez(tmp_path / "in.npz", z=z, c=c)
    script = tmp_path / "official_like.py"
    script.write_text(OFFICIAL_LIKE)
    args = [str(p) for p in (ROOT, path, tmp_path / "in.npz", tmp_path / "out.npz")]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *args],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = outputs({key: net.eval() for key, net in nets.items()})
    with np.load(tmp_path / "out.npz") as found:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value.detach(), rtol=1e-6, atol=1e-6)


def test_old_snapshots_go_by_number_and_not_by_spelling(tmp_path):
    for kimg in ("999999", "1000000"):
        (tmp_path / f"network-snapshot-{kimg}.pkl").write_bytes(b"")
    remove_old_snapshots(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["network-snapshot-1000000.pkl"]
