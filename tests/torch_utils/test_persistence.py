import copy
import inspect
import pickle
import sys

import pytest
import torch

from torch_utils import persistence
from torch_utils.persistence import _reconstruct_persistent_obj, persistent_class


@persistent_class
class Inner(torch.nn.Module):
    def __init__(self, features, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weight = torch.nn.Parameter(torch.randn(features, features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scratch", torch.ones(1), persistent=False)

    def forward(self, x):
        return (x - self.mean) @ self.weight * self.scale


@persistent_class
class Outer(torch.nn.Module):
    def __init__(self, features, inner_kwargs=None):
        super().__init__()
        self.inner = Inner(features, **(inner_kwargs or {}))
        self.gain = torch.nn.Parameter(torch.ones([]))

    def forward(self, x):
        return self.inner(x) * self.gain


@persistent_class
class Derived(Inner):
    def __init__(self, name):
        super().__init__(2)
        self.name = name


class Undecorated(Inner):
    pass


@persistent_class
class Settings:
    """No module at all."""

    def __init__(self, *values):
        self.values = values


def changed(net):
    """Values unlike the initial ones."""
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.normal_()
    return net


def assert_equal_and_independent(twin, net):
    assert type(twin) is type(net)
    ours, theirs = net.state_dict(), twin.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].data_ptr() != theirs[name].data_ptr()
    x = torch.randn(3, ours["inner.mean"].numel())
    assert torch.equal(net(x), twin(x))


def test_constructor_arguments_are_recorded_by_value():
    kwargs = {"scale": 2.0}
    net = Outer(3, inner_kwargs=kwargs)
    kwargs["scale"] = 5.0
    assert (net.init_args, net.init_kwargs) == ((3,), {"inner_kwargs": {"scale": 2.0}})
    net.init_kwargs["inner_kwargs"]["scale"] = 7.0
    assert net._init_kwargs == {"inner_kwargs": {"scale": 2.0}}
    assert (net.inner.init_args, net.inner.init_kwargs) == ((3,), {"scale": 2.0})
    assert Derived("x").init_args == ("x",)  # not those that it gave to Inner


def test_reduces_to_the_documented_meta():
    net = Outer(2)
    function, (meta,) = net.__reduce_ex__(4)
    assert function is _reconstruct_persistent_obj
    assert function.__module__ == "torch_utils.persistence"
    assert meta == {
        "type": "class",
        "version": 6,
        "module_src": inspect.getsource(sys.modules[__name__]),
        "class_name": "Outer",
        "state": net.__dict__,
    }
    assert {"_init_args", "_init_kwargs"} <= meta["state"].keys()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_round_trip(protocol):
    net = changed(Outer(3, inner_kwargs={"scale": 2.0})).eval()
    net.inner.weight.requires_grad_(False)
    data = pickle.dumps(net, protocol)
    source = inspect.getsource(sys.modules[__name__])
    assert data.count(source.encode()) == 1  # shared by all objects of the module
    twin = pickle.loads(data)
    assert_equal_and_independent(twin, net)
    assert not twin.training
    assert [p.requires_grad for p in twin.parameters()] == [True, False]
    assert torch.equal(twin.inner.scratch, net.inner.scratch)


def test_objects_that_are_no_modules_round_trip():
    twin = pickle.loads(pickle.dumps(Settings(1, "a")))
    assert type(twin) is Settings
    assert twin.values == (1, "a")


def test_source_is_never_executed(tmp_path):
    sentinel = tmp_path / "sentinel"
    _, (meta,) = changed(Outer(3)).__reduce__()
    meta = {**meta, "module_src": f"open({str(sentinel)!r}, 'w').close()"}
    with pytest.raises(pickle.UnpicklingError, match="'Outer'"):
        _reconstruct_persistent_obj(meta)
    assert not sentinel.exists()


def test_other_source_of_a_known_network_is_rebuilt_by_name(tmp_path):
    from training.networks import FullyConnectedLayer

    net = FullyConnectedLayer(3, 2, activation="lrelu").eval()
    _, (meta,) = net.__reduce__()
    sentinel = tmp_path / "sentinel"
    meta = {**meta, "module_src": f"open({str(sentinel)!r}, 'w').close()"}
    twin = _reconstruct_persistent_obj(meta)
    assert not sentinel.exists()
    x = torch.randn(4, 3)
    assert torch.equal(net(x), twin(x))


@pytest.mark.parametrize("change", [{"type": "function"}, {"version": 7}, {"version": "6"}])
def test_unknown_formats_are_refused(change):
    _, (meta,) = Outer(2).__reduce__()
    with pytest.raises(pickle.UnpicklingError, match=str(next(iter(change.values())))):
        _reconstruct_persistent_obj({**meta, **change})


def test_undecorated_subclass_says_what_to_do():
    with pytest.raises(pickle.PicklingError, match="Undecorated.*@persistent_class"):
        pickle.dumps(Undecorated(2))


def test_class_without_source_says_what_to_do(monkeypatch):
    monkeypatch.setitem(persistence._sources, __name__, None)
    with pytest.raises(pickle.PicklingError, match="source of Outer"):
        pickle.dumps(Outer(2))


def test_source_is_the_one_that_was_imported(tmp_path, monkeypatch):
    file = tmp_path / "edited_while_running.py"
    text = (
        "import torch\nfrom torch_utils.persistence import persistent_class\n\n\n"
        "@persistent_class\nclass Net(torch.nn.Module):\n    pass\n"
    )
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import edited_while_running

    file.write_text("broken =")
    _, (meta,) = edited_while_running.Net().__reduce__()
    assert meta["module_src"] == text


def test_deepcopy_is_equal_and_independent():
    net = changed(Outer(3, inner_kwargs={"scale": 2.0}))
    net.inner.weight.requires_grad_(False)
    net(torch.randn(2, 3)).sum().backward()
    twin = copy.deepcopy(net)
    assert_equal_and_independent(twin, net)
    assert [p.requires_grad for p in twin.parameters()] == [True, False]
    twin.init_kwargs["inner_kwargs"]["scale"] = 0
    changed(twin)
    assert not torch.equal(twin.inner.weight, net.inner.weight)
    assert net.init_kwargs == {"inner_kwargs": {"scale": 2.0}}


def test_deepcopy_drops_the_history_of_computed_tensors():
    net = Outer(2)
    net.inner.register_buffer("cache", net.inner.weight * 2)
    net.last = [{"x": net.inner.cache}]
    twin = copy.deepcopy(net)
    assert torch.equal(twin.inner.cache, net.inner.cache)
    assert twin.inner.cache.is_leaf
    assert twin.inner.cache.data_ptr() != net.inner.cache.data_ptr()
    assert twin.last[0]["x"] is twin.inner.cache  # sharing is kept


def test_deepcopy_keeps_shared_modules_shared():
    net = Outer(2)
    net.again = net.inner
    twin = copy.deepcopy(net)
    assert twin.again is twin.inner
    assert twin.inner is not net.inner


def test_rebuild_leaves_the_random_state_alone():
    net = changed(Outer(3))
    before = torch.get_rng_state()
    twin = persistence.rebuild_module(Outer, net.__dict__)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal_and_independent(twin, net)


def drop(net):
    del net.inner._parameters["weight"]


def add(net):
    net.inner.register_buffer("surplus", torch.zeros(1))


def reshape(net):
    net.inner.mean = torch.zeros(1, 3)


def make_complex(net):
    net.inner.mean = torch.zeros(3, dtype=torch.complex64)


def make_integer(net):
    net.inner.mean = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"Outer lacks 1 tensors, first 'inner\.weight'"),
        (add, r"first 'inner\.surplus'"),
        (reshape, r"'Outer\.inner\.mean' has shape \[1, 3\], its place has \[3\]"),
        (make_complex, r"'Outer\.inner\.mean' has dtype torch\.complex64"),
        (make_integer, r"'Outer\.inner\.mean' has dtype torch\.int64"),
    ],
)
def test_rebuild_names_the_tensor_that_does_not_fit(damage, message):
    net = Outer(3)
    damage(net)
    with pytest.raises(ValueError, match=message):
        persistence.rebuild_module(Outer, net.__dict__)


def test_find_persistent_class():
    assert persistence.find_persistent_class("Generator").__module__ == "training.networks"
    assert persistence.find_persistent_class("AugmentPipe").__module__ == "training.augment"
    with pytest.raises(LookupError, match="'Outer'"):
        persistence.find_persistent_class("Outer")  # persistent, but no network of the project


def test_wrapped_constructor_keeps_its_signature():
    assert list(inspect.signature(Inner).parameters) == ["features", "scale"]
