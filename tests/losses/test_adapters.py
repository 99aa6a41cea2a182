import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd_lightning.losses import (
    SRRL,
    VID,
    ActivationBoundary,
    FactorTransfer,
    Hint,
    Loss,
    OverhaulFeature,
    ReviewKD,
)
from kd_lightning.losses.adapters import Adapter, OfOneSize, Shape, adapter, connector, conv_bn

SIZES = st.integers(1, 9)


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_larger_map_is_averaged() -> None:
    pooled = OfOneSize((1, 2))(torch.tensor([[[[1.0, 3.0, 5.0, 9.0], [5.0, 7.0, 1.0, 1.0]]]]))
    assert pooled.tolist() == [[[[4.0, 4.0]]]]  # (1 + 3 + 5 + 7) / 4 and (5 + 9 + 1 + 1) / 4


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (7, 9)])
def test_a_map_that_is_not_larger_stays(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(OfOneSize(size)(x), x)


@settings(max_examples=30)
@given(SIZES, SIZES, SIZES, SIZES)
def test_pooling_takes_the_smaller_side_of_each_axis(h: int, w: int, height: int, width: int) -> None:
    x = torch.randn(1, 2, h, w)
    assert OfOneSize((height, width))(x).shape == (1, 2, min(h, height), min(w, width))


@pytest.mark.parametrize(
    ("student", "convolution"),
    [((2, 3, 8, 8), nn.Conv2d), ((2, 3, 16, 16), nn.Conv2d), ((2, 3, 4, 4), nn.ConvTranspose2d)],
)
def test_conv_bn_relu_meets_sizes_that_differ_by_two(student: Shape, convolution: type[nn.Module]) -> None:
    made = adapter("conv_bn_relu", student, (2, 5, 8, 8))
    assert any(isinstance(module, convolution) for module in made.modules())
    adapted = made(torch.randn(student))
    assert adapted.shape == (2, 5, 8, 8)
    assert adapted.min() == 0  # the ReLU is last
    assert adapted.max() > 0


def test_conv_bn_relu_has_the_parameters_of_its_convolution() -> None:
    # Weights and bias of the convolution, then scale and shift of the normalisation, 2 x 5.
    assert parameters_of(adapter("conv_bn_relu", (2, 3, 8, 8), (2, 5, 8, 8))) == 3 * 5 + 5 + 10
    assert parameters_of(adapter("conv_bn_relu", (2, 3, 16, 16), (2, 5, 8, 8))) == 3 * 5 * 9 + 5 + 10
    assert parameters_of(adapter("conv_bn_relu", (2, 3, 4, 4), (2, 5, 8, 8))) == 3 * 5 * 16 + 5 + 10


def test_conv_bn_relu_pools_other_sizes() -> None:
    assert adapter("conv_bn_relu", (2, 3, 12, 12), (2, 5, 4, 4))(torch.randn(2, 3, 12, 12)).shape == (2, 5, 4, 4)
    # A smaller map stays: the loss pools the teacher's.
    assert adapter("conv_bn_relu", (2, 3, 3, 3), (2, 5, 7, 7))(torch.randn(2, 3, 3, 3)).shape == (2, 5, 3, 3)


def test_conv1x1_has_no_bias() -> None:
    made = adapter("conv1x1", (2, 3, 8, 8), (2, 5, 4, 4))
    assert parameters_of(made) == 15
    assert made(torch.zeros(2, 3, 8, 8)).abs().max() == 0
    assert made(torch.randn(2, 3, 8, 8)).shape == (2, 5, 4, 4)


def test_conv1x1_is_a_matrix_at_every_position() -> None:
    made, x = adapter("conv1x1", (2, 3, 2, 2), (2, 5, 2, 2)), torch.randn(2, 3, 2, 2)
    (weight,) = made.parameters()
    torch.testing.assert_close(made(x)[1, :, 0, 1], weight[:, :, 0, 0] @ x[1, :, 0, 1])


@pytest.mark.parametrize("leading", [(2,), (2, 7)])
def test_linear_maps_the_last_axis(leading: Shape) -> None:
    made = adapter("linear", (*leading, 3), (*leading, 5))
    assert made(torch.randn(*leading, 3)).shape == (*leading, 5)
    assert parameters_of(made) == 3 * 5 + 5


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 8, 8), (2, 3, 4, 4)), ((2, 3), (2, 3)), ((2, 7, 3), (2, 5, 3))]
)
def test_none_changes_nothing(student: Shape, teacher: Shape) -> None:
    made, x = adapter("none", student, teacher), torch.randn(student)
    assert made(x) is x
    assert parameters_of(made) == 0


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 8, 8), (2, 6, 8, 8)), ((2, 3), (2, 6)), ((2, 7, 3), (2, 7, 6))]
)
def test_none_needs_as_many_channels(student: Shape, teacher: Shape) -> None:
    with pytest.raises(ValueError, match="adapter none needs as many channels in both, got 3 and 6: choose another"):
        adapter("none", student, teacher)


@pytest.mark.parametrize("kind", ["none", "conv1x1", "conv_bn_relu", "linear"])
def test_a_map_does_not_meet_a_vector(kind: Adapter) -> None:
    with pytest.raises(ValueError, match=r"both be maps or both be vectors, got \(2, 3, 4, 4\) and \(2, 3\)"):
        adapter(kind, (2, 3, 4, 4), (2, 3))


def test_linear_refuses_maps() -> None:
    with pytest.raises(ValueError, match=r"adapter linear is for vectors, got maps \(2, 3, 4, 4\): take conv1x1"):
        adapter("linear", (2, 3, 4, 4), (2, 5, 4, 4))


@pytest.mark.parametrize("kind", ["conv1x1", "conv_bn_relu"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3)])
def test_convolutions_refuse_vectors(kind: Adapter, shape: Shape) -> None:
    with pytest.raises(ValueError, match=rf"adapter {kind} is for maps \[N, C, H, W\], got .*: take linear"):
        adapter(kind, shape, shape)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="adapter must be none, conv1x1, conv_bn_relu or linear, got 'mlp'"):
        adapter("mlp", (2, 3), (2, 5))  # type: ignore[arg-type]


def test_conv_bn_centres_and_scales_each_channel() -> None:
    adapted = conv_bn(3, 5)(5 + torch.randn(8, 3, 4, 4))
    torch.testing.assert_close(adapted.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(adapted.var((0, 2, 3), unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


def test_a_connector_pools_and_has_no_activation() -> None:
    adapted = connector((2, 3, 8, 8), (2, 5, 4, 4))(torch.randn(2, 3, 8, 8))
    assert adapted.shape == (2, 5, 4, 4)
    assert adapted.min() < 0 < adapted.max()


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3)])
def test_a_connector_refuses_what_is_no_map(shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"connectors are for maps \[N, C, H, W\], got .*: a tap's :map makes one"):
        connector(shape, (2, 3, 4, 4))


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "tensors"),
    [
        (Hint(), [(2, 3, 8, 8)], [(2, 5, 8, 8)], 4),  # weight and bias, scale and shift
        (Hint("conv1x1"), [(2, 3, 8, 8), (2, 4, 4, 4)], [(2, 5, 8, 8), (2, 6, 4, 4)], 2),
        (Hint("linear"), [(2, 3)], [(2, 5)], 2),
        (VID(), [(2, 3, 8, 8)], [(2, 5, 8, 8)], 3 + 1),  # convolutions and log_scale
        (ActivationBoundary(), [(2, 3, 8, 8)], [(2, 5, 8, 8)], 3),
        (OverhaulFeature(), [(2, 3, 8, 8)], [(2, 5, 8, 8)], 3),
        (FactorTransfer(), [(2, 3, 8, 8)], [(2, 6, 8, 8)], 9 * 4),  # encoder, decoder and translator, 3 blocks each
        (ReviewKD(), [(2, 3, 8, 8), (2, 4, 4, 4)], [(2, 5, 8, 8), (2, 6, 4, 4)], 2 * 6 + 2),  # one attention
        (SRRL(), [(2, 3, 8, 8)], [(2, 5)], 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else "",
)
def test_build_makes_parameters_in_float32(
    loss: Loss, student: list[Shape], teacher: list[Shape], tensors: int
) -> None:
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    loss.build(student, teacher)
    parameters = list(loss.parameters())
    assert len(parameters) == tensors
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters)
    assert {name for name, _ in loss.named_parameters()} <= set(loss.state_dict())  # a resumed run finds them


def test_a_second_build_replaces_the_first() -> None:
    loss = Hint("linear")
    loss.build([(2, 3)], [(2, 5)])
    loss.build([(2, 4)], [(2, 6)])
    assert parameters_of(loss) == 4 * 6 + 6
