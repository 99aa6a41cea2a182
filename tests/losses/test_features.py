import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses.features import adapted, check_maps, check_same, listed, of_one_size, paired, unit


def test_one_tap_and_several_are_listed() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    assert listed(a)[0] is a
    assert len(listed(a)) == 1
    several = listed((a, b))
    assert isinstance(several, list)
    assert several[0] is a
    assert several[1] is b


def test_a_listed_sequence_is_a_copy() -> None:
    taps = [torch.zeros(1)]
    listed(taps).append(torch.ones(1))
    assert len(taps) == 1


def test_taps_are_paired_in_their_order() -> None:
    s, t = [torch.zeros(1), torch.ones(2)], (torch.zeros(3), torch.ones(4))
    assert [(a.numel(), b.numel()) for a, b in paired(s, t)] == [(1, 3), (2, 4)]
    assert [(a.numel(), b.numel()) for a, b in paired(s[0], [t[1]])] == [(1, 4)]


@pytest.mark.parametrize(("students", "teachers"), [(1, 2), (2, 1), (0, 1), (0, 0)])
def test_other_numbers_of_taps_are_refused(students: int, teachers: int) -> None:
    with pytest.raises(ValueError, match=f"got {students} and {teachers}: name the submodules in the term's student"):
        paired([torch.zeros(1)] * students, [torch.zeros(1)] * teachers)


def test_features_of_one_shape_pass() -> None:
    check_same(torch.zeros(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize("other", [(2, 4), (3, 3), (2, 3, 1)])
def test_features_of_two_shapes_are_refused(other: tuple[int, ...]) -> None:
    message = f"one shape, got (2, 3) and {other}: build the loss to get adapters, or tap elsewhere"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same(torch.zeros(2, 3), torch.zeros(other))


def test_maps_pass() -> None:
    check_maps([torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 1, 1)])


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3), (1, 2, 3, 4, 5)])
def test_what_is_no_map_is_refused_also_as_the_last(shape: tuple[int, ...]) -> None:
    message = f"features must be maps [N, C, H, W], got {shape}: a tap's :map makes one"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_maps([torch.zeros(2, 3, 4, 4), torch.zeros(shape)])


@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_map_is_average_pooled_by_hand(swapped: bool) -> None:
    large = torch.tensor([[1.0, 3, 5, 7], [1, 3, 1, 3]]).view(1, 1, 2, 4)
    small = torch.tensor([[8.0, 9]]).view(1, 1, 1, 2)
    # The means of (1, 3, 1, 3) and of (5, 7, 1, 3).
    expected = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2)
    pair = of_one_size(small, large)[::-1] if swapped else of_one_size(large, small)
    torch.testing.assert_close(pair[0], expected)
    torch.testing.assert_close(pair[1], small)


def test_each_axis_takes_the_smaller_size() -> None:
    a, b = of_one_size(torch.zeros(2, 3, 6, 2), torch.zeros(2, 5, 4, 8))
    assert (a.shape, b.shape) == ((2, 3, 4, 2), (2, 5, 4, 2))


def test_sizes_that_agree_are_left_alone() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(1, 5, 4, 4)
    pair = of_one_size(a, b)
    assert pair[0] is a
    assert pair[1] is b


@pytest.mark.parametrize("other", [(2, 3), (2, 3, 4)])
def test_vectors_and_sequences_are_left_alone(other: tuple[int, ...]) -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(other)
    assert of_one_size(a, b)[1] is b
    assert of_one_size(b, a)[1] is a


@settings(max_examples=15, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 6)] * 4), times=st.integers(1, 3))
def test_pooling_by_a_whole_number_keeps_the_mean(sizes: tuple[int, int, int, int], times: int) -> None:
    samples, channels, height, width = sizes
    large = torch.randn(samples, channels, times * height, times * width, dtype=torch.float64)
    pooled, _ = of_one_size(large, torch.zeros(1, 1, height, width))
    assert pooled.shape == sizes
    torch.testing.assert_close(pooled.mean((2, 3)), large.mean((2, 3)))


def test_each_feature_passes_its_own_adapter() -> None:
    adapters = nn.ModuleList([nn.Linear(3, 4), nn.Linear(5, 6)])
    values = [torch.randn(2, 3), torch.randn(2, 5)]
    results = adapted(adapters, values)
    for adapter, value, result in zip(adapters, values, results, strict=True):
        torch.testing.assert_close(result, adapter(value))
    assert adapted(adapters[:1], values[0])[0].shape == (2, 4)


def test_without_adapters_features_stay() -> None:
    x = torch.zeros(2, 3)
    assert adapted(nn.ModuleList(), x)[0] is x
    assert adapted([], [x, x])[1] is x


def test_more_features_than_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        adapted([nn.Identity()], [torch.zeros(1), torch.zeros(1)])


def test_unit_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    # By columns: (3, 0) and (4, -2) of length sqrt 20 = 4.4721360.
    torch.testing.assert_close(unit(x, dim=0), torch.tensor([[1.0, 0.8944272], [0.0, -0.4472136]]))


@pytest.mark.parametrize("fill", [0.0, 1e-9, -1e-12])
def test_a_vector_of_no_length_becomes_zero_without_gradient(fill: float) -> None:
    x = torch.tensor([[fill, 0.0], [3.0, 4.0]], requires_grad=True)
    result = unit(x)
    result[:, 1].sum().backward()
    torch.testing.assert_close(result.detach(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    # d (y / sqrt(x^2 + y^2)) at (3, 4): (-3 * 4, 3 * 3) / 125
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0], [-0.096, 0.072]]))


def test_a_short_vector_is_still_a_unit_vector() -> None:
    torch.testing.assert_close(unit(torch.tensor([3e-7, 4e-7])), torch.tensor([0.6, 0.8]))


def test_gradcheck_of_unit() -> None:
    assert torch.autograd.gradcheck(unit, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


@settings(max_examples=15, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), axis=st.integers(0, 3), scale=st.floats(1e-4, 1e4))
def test_any_axis_gets_the_length_one(shape: list[int], axis: int, scale: float) -> None:
    x: Tensor = scale * (torch.randn(shape, dtype=torch.float64).abs() + 0.1)
    dim = axis % len(shape)
    length = unit(x, dim).norm(dim=dim)
    torch.testing.assert_close(length, torch.ones_like(length))
    torch.testing.assert_close(unit(x, dim) * x.norm(dim=dim, keepdim=True), x)
