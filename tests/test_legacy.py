import collections
import io
import os
import pickle

import numpy as np
import pytest
import torch
from hostile_pickles import HOSTILE, PROTOCOL_2, Call, code, record, setattr_on_a_name, torch_file

import dnnlib
import legacy
from dnnlib import families
from torch_utils.persistence import _reconstruct_persistent_obj
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator

NET = dict(z_dim=8, w_dim=8, img_resolution=8, img_channels=3)


def make_networks(c_dim=2):
    """A small snapshot dict; every tensor differs from its initial value."""
    torch.manual_seed(0)
    G = Generator(
        c_dim=c_dim,
        mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs=dict(channel_base=64, num_fp16_res=1, conv_clamp=256),
        **NET,
    )
    D = Discriminator(c_dim, 8, 3, channel_base=64, block_kwargs=dict(freeze_layers=1))
    nets = dict(G=G, D=D, G_ema=G, augment_pipe=AugmentPipe(xflip=1, hue=1))
    with torch.no_grad():
        for tensor in [*G.parameters(), G.mapping.w_avg, *D.parameters()]:
            tensor.add_(torch.randn_like(tensor) * 0.1)
        nets["augment_pipe"].p.fill_(0.25)
    nets = {key: net.eval().requires_grad_(False) for key, net in nets.items()}
    return dict(nets, training_set_kwargs=dict(class_name="x.Y", path="a.zip", max_size=None))


@pytest.fixture(scope="module")
def networks():
    return make_networks()


def load(data):
    return legacy.load_network_pkl(io.BytesIO(data))


def images_of(G):
    z = torch.from_numpy(np.random.RandomState(0).randn(3, G.z_dim)).float()
    c = torch.eye(max(G.c_dim, 1))[[0] * 3, : G.c_dim]
    return G(z, c, truncation_psi=0.7, noise_mode="const")


def assert_same_networks(loaded, networks):
    assert list(loaded) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    for key in ("G", "D", "G_ema", "augment_pipe"):
        ours, theirs = loaded[key], networks[key]
        assert type(ours) is type(theirs)
        assert not any(module.training for module in ours.modules())
        assert not any(p.requires_grad for p in ours.parameters())
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    images = images_of(networks["G_ema"])
    assert torch.equal(images_of(loaded["G_ema"]), images)
    c = torch.eye(2)[[0, 1, 0]]
    assert torch.equal(loaded["D"](images, c), networks["D"](images, c))


# ---------------------------------------------------------------------------------------------
# Snapshots that must be read


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_our_own_snapshot(networks, protocol):
    loaded = load(pickle.dumps(networks, protocol))
    assert_same_networks(loaded, networks)
    assert loaded["training_set_kwargs"] == networks["training_set_kwargs"]
    assert loaded["training_set_kwargs"].path == "a.zip"


class OfficialPickler(pickle.Pickler):
    """Writes networks with the details that differ in the official repo's pickles."""

    def reducer_override(self, obj):
        if not isinstance(obj, torch.nn.Module):
            return NotImplemented
        state = dict(obj.__dict__)
        # Arguments arrive by keyword, in EasyDicts, some as NumPy scalars or arrays.
        state["_init_kwargs"] = as_official(state["_init_kwargs"])
        state["_orig_class_name"] = type(obj).__name__
        state["_orig_module_src"] = "raise AssertionError('executed')"
        state["device"] = torch.device("cpu")
        state["size"] = torch.Size([1, 2])
        state["dtype"] = torch.float16
        state["storage_type"] = torch.FloatStorage
        for group in ("_parameters", "_buffers", "_modules"):
            state[group] = collections.OrderedDict(state[group])
        meta = dnnlib.EasyDict(
            type="class",
            version=6,
            module_src="raise AssertionError('executed')",
            class_name=type(obj).__name__,
            state=state,
        )
        return _reconstruct_persistent_obj, (meta,), None, None, None


def as_official(value):
    if isinstance(value, dict):
        return dnnlib.EasyDict({key: as_official(item) for key, item in value.items()})
    if type(value) is int:
        return np.int64(value)
    if type(value) is float:
        return np.float32(value)
    if type(value) is list:
        return np.array(value)
    return value


@pytest.mark.parametrize("old_numpy", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_official_snapshot(networks, protocol, old_numpy):
    kwargs = dnnlib.EasyDict(
        class_name="training.dataset.ImageFolderDataset", use_labels=np.bool_(True), list=[1, (2,)]
    )
    file = io.BytesIO()
    OfficialPickler(file, protocol).dump(dict(networks, training_set_kwargs=kwargs))
    data = file.getvalue()
    if old_numpy and protocol < 4:  # later protocols count the characters
        data = data.replace(b"numpy._core.", b"numpy.core.")
    if protocol == 2:
        assert b"c_codecs\nencode" in data
    loaded = load(data)
    assert_same_networks(loaded, networks)
    assert loaded["training_set_kwargs"] == kwargs
    assert type(loaded["training_set_kwargs"].use_labels) is bool
    assert loaded["G"].synthesis.b8.use_fp16 is True


def test_arrays_as_arguments_become_lists():
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=[1.0, 0.5, 0.25, 0.0])
    nets = dict(make_networks(), augment_pipe=pipe)
    file = io.BytesIO()
    OfficialPickler(file, 4).dump(nets)
    loaded = load(file.getvalue())["augment_pipe"]
    assert loaded.init_kwargs == pipe.init_kwargs


def test_requires_grad_is_kept_as_saved(networks):
    nets = dict(networks, G=make_networks()["G"].requires_grad_(True).train())
    loaded = load(pickle.dumps(nets))
    assert all(p.requires_grad for p in loaded["G"].parameters())
    assert not loaded["G"].training
    assert not any(p.requires_grad for p in loaded["D"].parameters())


def test_half_precision_and_views_become_float32(networks):
    G = make_networks()["G"].half()
    G.mapping.fc0.weight.data = G.mapping.fc0.weight.data.t().contiguous().t()
    loaded = load(pickle.dumps(dict(networks, G=G)))["G"]
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, G.state_dict()[name].float())


def test_snapshot_without_augmentation_or_data_set(networks):
    data = {key: networks[key] for key in ("G", "D", "G_ema")}
    loaded = load(pickle.dumps(data))
    assert (loaded["augment_pipe"], loaded["training_set_kwargs"]) == (None, None)
    loaded = load(pickle.dumps(dict(data, augment_pipe=None, training_set_kwargs=None)))
    assert (loaded["augment_pipe"], loaded["training_set_kwargs"]) == (None, None)


# ---------------------------------------------------------------------------------------------
# Pickles that must not run


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle_is_refused_and_runs_nothing(case, tmp_path):
    make, named, _ = HOSTILE[case]
    (tmp_path / "box").mkdir()
    sentinel = tmp_path / "box" / "sentinel"
    data = PROTOCOL_2 + make(sentinel)
    with pytest.raises((legacy.UnsafePickleError, ValueError), match=named) as info:
        load(data)
    assert "\n" not in str(info.value)
    assert "weights_only" not in str(info.value)  # no advice to use the unsafe reader
    assert os.listdir(tmp_path / "box") == []


@pytest.mark.parametrize("case", [name for name, (_, _, works) in HOSTILE.items() if works])
def test_hostile_pickle_is_a_real_attack(case, tmp_path):
    sentinel = tmp_path / "sentinel"
    try:
        pickle.loads(PROTOCOL_2 + HOSTILE[case][0](sentinel))
    except Exception:  # noqa: S110, BLE001 (what happens after the attack does not matter)
        pass
    assert sentinel.exists()


def test_stand_ins_survive_attempts_to_change_them(networks):
    for module, name in legacy._ALLOWED:
        with pytest.raises((legacy.UnsafePickleError, ValueError)):
            load(PROTOCOL_2 + setattr_on_a_name(module, name))
    assert_same_networks(load(pickle.dumps(networks)), networks)


def test_source_of_a_good_snapshot_is_not_executed(networks, tmp_path, monkeypatch):
    from torch_utils import persistence

    sentinel = tmp_path / "sentinel"
    for module in families.network_modules():
        monkeypatch.setitem(persistence._sources, module, code(sentinel))
    data = pickle.dumps(networks)
    assert str(sentinel).encode() in data
    assert_same_networks(load(data), networks)
    assert not sentinel.exists()


# ---------------------------------------------------------------------------------------------
# Files that cannot be used


def test_damaged_files_say_so(networks):
    data = pickle.dumps(networks)
    for end in (0, 1, 2, 100, len(data) // 3, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="truncated, damaged") as info:
            load(data[:end])
        assert "\n" not in str(info.value)
    for other in (b"\x89PNG\r\n\x1a\n" + bytes(50), b"<!DOCTYPE html>", b"PK\x03\x04" + bytes(99)):
        with pytest.raises(ValueError, match="the file starts with") as info:
            load(other)
        assert repr(other[:2]) in str(info.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "'G' is nothing"),
        ({"G": 3}, "'G' is a int"),
        ({"G": record("Generator", "x", _init_args=None)}, "'_init_args' is a NoneType"),
        ({"G": record("Generator", "x", _modules=None)}, "'_modules' is not a dict"),
        ({"G": record("Generator", "x", _modules={"m": 1})}, "submodule 'm' is a int"),
        ({"G": record("Generator", "x", _buffers={"b": 1})}, "tensor 'b' is a int"),
        ({"G": record("Generator", "x")}, "rebuild 'G' .*missing .* 'z_dim'"),
    ],
)
def test_other_pickles_say_what_is_wrong(data, message):
    with pytest.raises(ValueError, match=message):
        load(pickle.dumps(data))


def test_endless_nesting_is_refused():
    inner = {}
    for _ in range(200):
        inner = {"a": inner}
    hostile = record("Generator", "x", _init_kwargs=inner)
    with pytest.raises(ValueError, match="nested too deeply"):
        load(pickle.dumps({"G": hostile}))


def doubled(value, wrap, times=60):
    """Refers to the value 2^times times, in a pickle of about times * 10 bytes."""
    for _ in range(times):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"_init_args": (doubled(0, lambda x: [x, x], 30),)}, 1),
        ({"_init_args": (doubled(0, lambda x: (x, x), 30),)}, 1),
        ({"_init_kwargs": doubled({}, lambda x: {"a": x, "b": x}, 30)}, 1),
        ({"_init_args": (np.zeros(legacy._MAX_ITEMS),)}, 1),
        ({}, 30),
    ],
)
def test_work_is_bounded_when_things_are_shared(changes, times, monkeypatch):
    visits = []
    visit = legacy._Checker._visit
    monkeypatch.setattr(legacy._Checker, "_visit", lambda *args: visits.append(1) or visit(*args))
    net = record("Generator", "x", **changes)
    net = doubled(net, lambda x: record("Generator", "x", _modules={"a": x, "b": x}), times - 1)
    with pytest.raises(legacy.NetworkPickleError, match="no network has so many"):
        load(pickle.dumps({"G": net}))
    assert len(visits) <= legacy._MAX_ITEMS + 1


def test_circles_are_refused():
    circle = []
    circle += [circle, circle]
    with pytest.raises(ValueError, match="nested too deeply"):
        load(pickle.dumps({"G": record("Generator", "x", _init_args=(circle,))}))


def test_shared_things_are_not_written_out_in_messages():
    value = doubled(0, lambda x: [x, x])
    for changed in ("type", "version"):
        meta = dict(type="class", version=6, class_name="Generator", state={}, module_src="")
        hostile = Call(_reconstruct_persistent_obj, {**meta, changed: value})
        with pytest.raises(ValueError, match="without its format"):
            load(pickle.dumps({"G": hostile}))
    with pytest.raises(ValueError, match="'G' is a str"):
        load(pickle.dumps({"G": Call(torch.device, value)}))


def test_names_in_messages_are_cut_and_escaped():
    name = "\x1b[2J\nError" + "x" * 10_000
    for data in (
        {"G": record(name, "x")},
        {"G": record("Generator", "x", _init_args=(record(name, "x"),))},
        {"G": record("Generator", "x", _modules={name: record("Generator", "x")})},
    ):
        with pytest.raises((legacy.UnsafePickleError, ValueError)) as info:
            load(pickle.dumps(data))
        assert str(info.value).isprintable() and len(str(info.value)) < 400


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(NET, w_dim=1 << 20, mapping_kwargs=dict(num_layers=2)), "has shape"),
        (dict(NET, mapping_kwargs=dict(num_layers=1 << 20)), "arguments ask for more"),
        (dict(NET, mapping_kwargs=dict(num_layers=10**9)), "argument above"),
        (dict(NET, img_resolution=float(2**1000)), "rebuild"),
    ],
)
def test_arguments_that_ask_for_too_much_are_refused(networks, kwargs, message, monkeypatch):
    made = []  # outside the meta device
    randn = torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *a, **k: (made.append(x) if (x := randn(*a, **k)).is_cpu else 0) or x
    )
    G = make_networks()["G"]
    made.clear()
    G._init_kwargs.clear()
    G._init_kwargs.update(c_dim=2, **kwargs)
    with pytest.raises(legacy.NetworkPickleError, match=message):
        load(pickle.dumps(dict(networks, G=G)))
    assert not made


def test_buffers_that_are_not_saved_are_left_out(networks):
    G = make_networks()["G"]
    G.mapping.register_buffer("scratch", torch.ones(1), persistent=False)
    loaded = load(pickle.dumps(dict(networks, G=G)))["G"]
    assert loaded.state_dict().keys() == G.state_dict().keys()


def test_a_pipe_can_be_read(networks):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_args):
            raise io.UnsupportedOperation

    assert_same_networks(legacy.load_network_pkl(Pipe(pickle.dumps(networks))), networks)


def test_tensor_beyond_its_storage_is_refused():
    storage = torch_file(
        torch.storage.TypedStorage(
            wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
        ),
        zipped=False,
    )
    packed = Call(torch.storage._load_from_bytes, storage)
    for offset, size, stride in (
        (0, (5,), (1,)),
        (1, (2, 2), (2, 1)),
        (-1, (1,), (1,)),
        (0, (5,), (0,)),
    ):
        tensor = Call(torch._utils._rebuild_tensor_v2, packed, offset, size, stride, False, {})
        with pytest.raises(ValueError, match="damaged: a tensor"):
            load(pickle.dumps({"G": tensor}))


def drop(G):
    del G.mapping.fc0._parameters["bias"]


def add(G):
    G.synthesis.register_buffer("surplus", torch.zeros(1))


def reshape(G):
    G.synthesis.b8.conv1.weight = torch.nn.Parameter(torch.zeros(1, 8, 3, 3))


def replace_argument(G):
    G._init_kwargs["c_dim"] = 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"'G' \(Generator\).*lacks.*'mapping\.fc0\.bias'"),
        (add, r"'G' \(Generator\).*'synthesis\.surplus'"),
        (reshape, r"'G' \(Generator\).*synthesis\.b8\.conv1\.weight' has shape \[1, 8, 3, 3\]"),
        (replace_argument, r"'G' \(Generator\).*mapping\.embed\.weight' has shape"),
    ],
)
def test_tensor_that_does_not_fit_is_named(networks, damage, message):
    G = make_networks()["G"]
    damage(G)
    with pytest.raises(legacy.NetworkPickleError, match=message):
        load(pickle.dumps(dict(networks, G=G)))
