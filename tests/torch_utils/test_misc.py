import warnings

import numpy as np
import pytest
import torch

from torch_utils import misc


def test_constant_has_the_value_and_the_requested_layout():
    t = misc.constant([[1, 2], [3, 4]], shape=[5, 2, 2], dtype=torch.float64)
    assert t.dtype == torch.float64
    assert t.device.type == "cpu"
    assert torch.equal(t[3], torch.tensor([[1, 2], [3, 4]], dtype=torch.float64))
    image = misc.constant(2.0, shape=[2, 3, 4, 5], memory_format=torch.channels_last)
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert not image.is_contiguous()


def test_constant_is_made_once_per_distinct_arguments():
    first = misc.constant(np.array([1.0, 2.0]))
    assert misc.constant(np.array([1.0, 2.0])) is first
    assert misc.constant([1.0, 2.0], device="cpu") is first
    assert misc.constant([1.0, 2.5]) is not first
    assert misc.constant([1.0, 2.0], shape=[3, 2]) is not first
    assert misc.constant([1.0, 2.0], dtype=torch.float16) is not first
    assert misc.constant([[1.0, 2.0]]) is not first


def test_constant_follows_the_default_dtype():
    before = torch.get_default_dtype()
    assert misc.constant(0.1).dtype == before
    try:
        torch.set_default_dtype(torch.float64)
        assert misc.constant(0.1).item() == 0.1
    finally:
        torch.set_default_dtype(before)


def test_constant_made_in_inference_mode_can_be_differentiated_through_later():
    with torch.inference_mode():
        c = misc.constant([3.0, 7.0, 11.0])
    assert not c.is_inference()
    x = torch.ones(3, requires_grad=True)
    (x * misc.constant([3.0, 7.0, 11.0])).sum().backward()
    assert x.grad.tolist() == [3, 7, 11]


def test_constant_does_not_follow_later_changes_of_its_argument():
    value = np.array([1.0, 2.0, 3.0])
    t = misc.constant(value)
    value[0] = 9
    assert t.tolist() == [1, 2, 3]


def test_constant_that_does_not_broadcast_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        misc.constant([1, 2, 3], shape=[2])


def test_assert_shape_accepts_any_size_for_none():
    misc.assert_shape(torch.zeros(2, 3, 4), [2, None, 4])
    misc.assert_shape(torch.zeros([]), [])


@pytest.mark.parametrize("ref", [[2, 3], [2, 3, 4, 1], [2, 3, 5], [None, 4, 4]])
def test_assert_shape_names_both_shapes(ref):
    with pytest.raises(AssertionError, match=r"\[2, 3, 4\], expected \[") as error:
        misc.assert_shape(torch.zeros(2, 3, 4), ref)
    assert str(error.value).count("any") == ref.count(None)


def _frozen_size(x):
    return x * int(x.shape[0])


def _frozen_size_silenced(x):
    with misc.suppress_tracer_warnings():
        return x * int(x.shape[0])


def _checked_size(x):
    misc.assert_shape(x, [2, None])
    return x * 2


def test_tracer_warnings_are_silenced_only_inside_the_context():
    x = torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)  # torch.jit.trace itself
        torch.jit.trace(_frozen_size_silenced, (x,))
        torch.jit.trace(_checked_size, (x,))
        with pytest.warns(torch.jit.TracerWarning):
            torch.jit.trace(_frozen_size, (x,))


def test_profiled_function_appears_in_the_profile_and_passes_everything_through():
    @misc.profiled_function
    def weighted_sum(a, *, b):
        """Docstring."""
        return a + 2 * b

    with torch.autograd.profiler.profile() as profile:
        assert weighted_sum(1, b=3) == 7
    assert "weighted_sum" in [event.name for event in profile.function_events]
    assert weighted_sum.__doc__ == "Docstring."


def _network(width=3):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


def test_params_and_buffers_names_everything_once():
    names = [name for name, _ in misc.params_and_buffers(_network())]
    assert names[:2] == ["0.weight", "0.bias"]
    assert "1.running_mean" in names
    assert len(names) == len(set(names)) == 7


def test_copy_params_and_buffers_keeps_requires_grad_and_dtype():
    src, dst = _network().double(), _network()
    src[1].running_mean.fill_(5)
    dst[0].weight.requires_grad_(False)
    misc.copy_params_and_buffers(src, dst, require_all=True)
    assert torch.equal(dst[0].weight, src[0].weight.float())
    assert dst[1].running_mean.tolist() == [5, 5, 5]
    assert dst[0].weight.dtype == torch.float32
    assert [p.requires_grad for p in dst.parameters()] == [False, True, True, True]


def test_copy_params_and_buffers_skips_or_refuses_missing_tensors():
    src, dst = torch.nn.Sequential(torch.nn.Linear(2, 3)), _network()
    before = dst[1].running_mean.clone()
    misc.copy_params_and_buffers(src, dst)
    assert torch.equal(dst[0].weight, src[0].weight)
    assert torch.equal(dst[1].running_mean, before)
    with pytest.raises(ValueError, match=r"lacks 1\.weight, 1\.bias, 1\.running_mean"):
        misc.copy_params_and_buffers(src, dst, require_all=True)


def test_copy_params_and_buffers_refuses_shapes_that_would_broadcast_and_changes_nothing():
    src, dst = _network(width=1), _network(width=3)
    src[0] = torch.nn.Linear(2, 3)  # fits, and comes before the one that does not
    before = dst[0].weight.clone()
    with pytest.raises(ValueError, match=r"1\.weight has shape \[1\].*\[3\]"):
        misc.copy_params_and_buffers(src, dst)
    assert torch.equal(dst[0].weight, before)
