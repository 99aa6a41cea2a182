import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.length import Length
from kd_lightning.losses import FactorTransfer
from kd_lightning.losses.adapters import Shape
from kd_lightning.losses.factor_transfer import Factor, decoder, encoder, factor_distance, reconstruction

NO_TARGET = torch.zeros(0, dtype=torch.int64)
STUDENT, TEACHER = (6, 3, 8, 8), (6, 8, 4, 4)
FORMS: list[tuple[int, Factor]] = [(1, "flat"), (2, "flat"), (1, "map"), (2, "map")]


def built(p: int = 1, factor: Factor = "flat", epochs: Length = 2) -> tuple[FactorTransfer, Tensor, Tensor]:
    loss = FactorTransfer(p, factor=factor, paraphraser_epochs=epochs)
    loss.build([STUDENT], [TEACHER])
    return loss, torch.randn(STUDENT), torch.randn(TEACHER).relu()


def parts(loss: FactorTransfer) -> tuple[nn.ModuleDict, nn.Sequential]:
    assert loss.paraphraser is not None
    assert loss.translator is not None
    return loss.paraphraser, loss.translator


def same(module: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("p", "expected"), [(1, 0.4), (2, 0.2)])
def test_flat_by_hand(p: int, expected: float) -> None:
    # (3, 4) / 5 = (0.6, 0.8) and (0, 2) / 2 = (0, 1): |0.6| and |0.2|, mean 0.4; squares 0.36 + 0.04, mean 0.2.
    student, teacher = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1), torch.tensor([[0.0, 2.0]]).view(1, 2, 1, 1)
    assert factor_distance(student, teacher, p).item() == pytest.approx(expected)


def test_the_batch_and_the_entries_are_averaged() -> None:
    # The second sample has the same direction: half of 0.4 and of 0.2.
    student, teacher = torch.tensor([[3.0, 4.0], [5.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert factor_distance(student, teacher, 1).item() == pytest.approx(0.2)
    assert factor_distance(student, teacher, 2).item() == pytest.approx(0.1)


@pytest.mark.parametrize(("p", "expected"), [(1, 0.6), (2, 0.4)])
def test_map_by_hand(p: int, expected: float) -> None:
    # Two channels, two positions. Mean squares of the student: (1 + 5) / 2 = 3 and (8 + 0) / 2 = 4, so (0.6, 0.8);
    # of the teacher: (4 + 4) / 2 = 4 and 0, so (1, 0). |0.4| and |0.8|, mean 0.6; squares 0.16 + 0.64, mean 0.4.
    student = torch.tensor([[[[1.0, 8**0.5]], [[5**0.5, 0.0]]]])
    teacher = torch.tensor([[[[2.0, 0.0]], [[2.0, 0.0]]]])
    assert factor_distance(student, teacher, p, "map").item() == pytest.approx(expected)


@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_against_a_loop(p: int, factor: Factor) -> None:
    student, teacher = torch.randn(2, 3, 4, 2, 2)
    total, count = 0.0, 0
    for n in range(3):
        vectors = []
        for x in (student[n], teacher[n]):
            if factor == "map":
                values = [sum(x[c, i, j].item() ** 2 for c in range(4)) / 4 for i in range(2) for j in range(2)]
            else:
                values = x.flatten().tolist()
            norm = sum(value**2 for value in values) ** 0.5
            vectors.append([value / norm for value in values])
        for a, b in zip(*vectors, strict=True):
            total, count = total + abs(a - b) ** p, count + 1
    assert factor_distance(student, teacher, p, factor).item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("p", [1, 2])
def test_against_torchdistill(p: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    theirs = losses.FTLoss(p=p)({"translator": {"output": student}}, {"paraphraser": {"output": teacher}})
    if p == 1:
        torch.testing.assert_close(factor_distance(student, teacher, 1), theirs)
        return
    # For p = 2 it takes the mean of the norms of each sample's difference; ours is the mean square. They agree for a
    # single sample, whose squared norm is ours times the entries.
    for s, t in zip(student.split(1), teacher.split(1), strict=True):
        norm = losses.FTLoss(p=2)({"translator": {"output": s}}, {"paraphraser": {"output": t}})
        torch.testing.assert_close(factor_distance(s, t, 2), norm**2 / 12)


def test_paraphraser_and_translator_are_those_of_torchdistill() -> None:
    wrapper = pytest.importorskip("torchdistill.models.wrapper")
    theirs = wrapper.Paraphraser4FactorTransfer(0.5, 8)
    x = torch.randn(6, 8, 4, 4)
    for ours, other in ((encoder(8, 4), theirs.encoder), (decoder(8, 4), theirs.decoder)):
        other.load_state_dict(dict(zip(other.state_dict(), ours.state_dict().values(), strict=True)))
        y = ours(x)
        torch.testing.assert_close(y, other(x))
        x = y
    translator = wrapper.Translator4FactorTransfer(3, 4)
    assert [p.shape for p in encoder(3, 4).parameters()] == [p.shape for p in translator.parameters()]


@pytest.mark.parametrize(("rate", "factors"), [(0.5, 4), (0.75, 6), (2.0, 16), (0.01, 1)])
def test_the_rate_sets_the_number_of_factors(rate: float, factors: int) -> None:
    loss = FactorTransfer(rate=rate)
    loss.build([STUDENT], [TEACHER])
    paraphraser, translator = parts(loss)
    assert paraphraser["encoder"](torch.randn(TEACHER)).shape == (6, factors, 4, 4)
    assert paraphraser["decoder"](torch.randn(6, factors, 4, 4)).shape == TEACHER
    assert translator(torch.randn(STUDENT)).shape == (6, factors, 4, 4)


@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_the_minimum_is_zero_at_equality_of_direction(p: int, factor: Factor) -> None:
    teacher = torch.randn(4, 3, 2, 2)
    assert factor_distance(5 * teacher, teacher, p, factor).item() == pytest.approx(0, abs=1e-7)
    assert factor_distance(torch.randn(4, 3, 2, 2), teacher, p, factor) > 1e-3


@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_gradcheck(p: int, factor: Factor) -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 2).double()
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: factor_distance(s, t, p, factor), inputs)


def test_reconstruction_by_hand_and_its_gradient() -> None:
    # ((1 - 0)^2 + (2 - 4)^2) / 2
    assert reconstruction(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == pytest.approx(2.5)
    decoded, feature = torch.randn(2, 2, 3, 2, 2).double()
    assert torch.autograd.gradcheck(reconstruction, (decoded.requires_grad_(), feature))


@pytest.mark.parametrize("epoch", [0, 1])
def test_in_its_epochs_the_value_is_the_error_of_the_paraphraser(epoch: int) -> None:
    loss, student, teacher = built()
    paraphraser, _ = parts(copy.deepcopy(loss))
    expected = F.mse_loss(paraphraser["decoder"](paraphraser["encoder"](teacher)), teacher)
    torch.testing.assert_close(loss(student, teacher, NO_TARGET, epoch=epoch), expected)


@pytest.mark.parametrize("epoch", [2, 3, 200, None])
def test_afterwards_the_value_is_the_distance_of_the_factors(epoch: int | None) -> None:
    loss, student, teacher = built()
    loss(student, teacher, NO_TARGET, epoch=0)  # moves the running statistics
    paraphraser, translator = parts(copy.deepcopy(loss))
    expected = factor_distance(translator(student), paraphraser.eval()["encoder"](teacher))
    torch.testing.assert_close(loss(student, teacher, NO_TARGET, epoch=epoch), expected)


@pytest.mark.parametrize("epoch", [0, 1])
def test_in_its_epochs_only_the_paraphraser_has_a_gradient(epoch: int) -> None:
    loss, student, teacher = built()
    loss(student.requires_grad_(), teacher, NO_TARGET, epoch=epoch).backward()
    paraphraser, translator = parts(loss)
    for name, parameter in paraphraser.named_parameters():
        assert parameter.grad is not None, name
        # The normalisation takes the convolution's bias away.
        assert parameter.grad.abs().max() > 0 or name.endswith("0.bias"), name
    assert all(parameter.grad is None for parameter in translator.parameters())
    assert student.grad is None
    assert teacher.grad is None


@pytest.mark.parametrize("epoch", [2, None])
def test_afterwards_only_translator_and_student_have_a_gradient(epoch: int | None) -> None:
    loss, student, teacher = built()
    loss(student.requires_grad_(), teacher.requires_grad_(), NO_TARGET, epoch=epoch).backward()
    paraphraser, translator = parts(loss)
    for name, parameter in translator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("0.bias"), name
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in paraphraser.parameters())
    assert teacher.grad is None


def test_its_epochs_may_be_a_share_of_the_training() -> None:
    loss, student, teacher = built(epochs=0.125)
    loss.requires_grad_(False)

    def reaches_the_student(epoch: int, epochs: int) -> bool:
        return bool(loss(student.requires_grad_(), teacher, NO_TARGET, epoch, epochs).requires_grad)

    assert [reaches_the_student(epoch, 16) for epoch in range(4)] == [False, False, True, True]
    assert [reaches_the_student(epoch, 8) for epoch in range(4)] == [False, True, True, True]
    with pytest.raises(ValueError, match=r"0\.125 is a share of the training, which needs trainer\.max_epochs"):
        loss(student, teacher, NO_TARGET, 0)


def test_each_learns_in_its_own_epochs() -> None:
    loss, student, teacher = built()
    paraphraser, translator = parts(loss)
    # Weight decay and momentum too must leave alone what is not trained.
    optimizer = torch.optim.SGD([student.requires_grad_(), *loss.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)
    values: dict[int, list[float]] = {}
    for epoch in range(4):
        loss.train()  # as a trainer does at the start of an epoch
        before = copy.deepcopy((paraphraser.state_dict(), translator.state_dict(), student.detach()))
        for _ in range(10):
            value = loss(student, teacher, NO_TARGET, epoch=epoch)
            values.setdefault(epoch, []).append(value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        trained = epoch >= 2
        assert same(paraphraser, before[0]) == trained  # with the running statistics
        assert same(translator, before[1]) != trained
        assert torch.equal(student.detach(), before[2]) != trained
    assert values[1][-1] < 0.9 * values[0][0]
    assert values[3][-1] < 0.9 * values[2][0]


def test_the_paraphraser_trains_again_after_it_was_fixed() -> None:
    loss, student, teacher = built()
    paraphraser, _ = parts(loss)
    first = loss(student, teacher, NO_TARGET, epoch=0)
    loss(student, teacher, NO_TARGET, epoch=2)
    before = copy.deepcopy(paraphraser.state_dict())
    # The statistics of the batch again, not the running ones, which move on.
    torch.testing.assert_close(loss(student, teacher, NO_TARGET, epoch=1), first)
    assert not same(paraphraser, before)


@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_twenty_steps_lower_the_distance(p: int, factor: Factor) -> None:
    loss, student, teacher = built(p, factor)
    optimizer = torch.optim.Adam([student.requires_grad_(), *loss.parameters()], lr=0.02)
    values = []
    for _ in range(21):
        value = loss(student, teacher, NO_TARGET, epoch=2)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


def test_not_built_it_is_the_bare_formula() -> None:
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    for epoch in (None, 0, 50):
        value = FactorTransfer(2, factor="map")(student, teacher, NO_TARGET, epoch=epoch)
        torch.testing.assert_close(value, factor_distance(student, teacher, 2, "map"))


def test_factors_of_two_sizes_are_averaged_to_the_smaller() -> None:
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    expected = factor_distance(student, F.avg_pool2d(teacher, 2))
    torch.testing.assert_close(factor_distance(student, teacher), expected)


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_order_of_the_batch_does_not_matter(epoch: int) -> None:
    loss, student, teacher = built()
    order = torch.randperm(6)
    shuffled = copy.deepcopy(loss)(student[order], teacher[order], NO_TARGET, epoch=epoch)
    torch.testing.assert_close(shuffled, loss(student, teacher, NO_TARGET, epoch=epoch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, p: int, factor: Factor) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)  # a square would not fit in float16
    value = factor_distance(student.requires_grad_(), teacher, p, factor)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, factor_distance(student.float(), teacher.float(), p, factor))
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("epoch", [0, 2])
def test_autocast_is_near_float32(epoch: int) -> None:
    loss, student, teacher = built()
    expected = copy.deepcopy(loss)(student, teacher, NO_TARGET, epoch=epoch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.requires_grad_(), teacher, NO_TARGET, epoch=epoch)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    gradients = [p.grad for p in (student, *loss.parameters()) if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 3, 3)])
@pytest.mark.parametrize("constant", [0.0, 2.0])
@pytest.mark.parametrize(("p", "factor"), FORMS)
def test_small_and_constant_inputs_stay_finite(shape: Shape, constant: float, p: int, factor: Factor) -> None:
    student = torch.full(shape, constant, requires_grad=True)
    value = factor_distance(student, torch.randn(shape), p, factor)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("epoch", [0, 2])
def test_constant_maps_of_one_sample_stay_finite(channels: int, epoch: int) -> None:
    loss, shape = FactorTransfer(paraphraser_epochs=1), (1, channels, 4, 4)
    loss.build([shape], [shape])
    student = torch.ones(shape, requires_grad=True)
    value = loss(student, torch.ones(shape), NO_TARGET, epoch=epoch)
    value.backward()
    assert value.isfinite()
    gradients = [p.grad for p in (student, *loss.parameters()) if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_single_position_of_a_single_sample_cannot_be_normalised() -> None:
    loss, shape = FactorTransfer(), (1, 2, 1, 1)
    loss.build([shape], [shape])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(shape), torch.zeros(shape), NO_TARGET, epoch=0)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.floats(1e-2, 1e2), st.sampled_from(FORMS))
def test_the_scale_does_not_matter_and_the_value_is_bounded(
    samples: int, channels: int, side: int, scale: float, form: tuple[int, Factor]
) -> None:
    student, teacher = torch.randn(2, samples, channels, side, side)
    value = factor_distance(student, teacher, *form)
    torch.testing.assert_close(factor_distance(scale * student, teacher, *form), value, rtol=1e-4, atol=1e-6)
    assert 0 <= value <= 2 ** form[0] + 1e-5  # unit vectors of one entry: |1 - (-1)|^p


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5, 2, 2)
    assert torch.equal(FactorTransfer()(student, teacher, target), factor_distance(student, teacher))


def test_what_it_needs() -> None:
    assert FactorTransfer.student_tap == FactorTransfer.teacher_tap == "last_stage"
    assert FactorTransfer.needs == {"epoch", "epochs"}


@pytest.mark.parametrize("p", [0, 3])
def test_a_bad_p_is_named(p: int) -> None:
    with pytest.raises(ValueError, match=f"p must be 1 or 2, got {p}"):
        FactorTransfer(p)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_rate_is_named(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate must be > 0 and finite, got {rate}"):
        FactorTransfer(rate=rate)


def test_a_bad_factor_is_named() -> None:
    with pytest.raises(ValueError, match=r"factor must be one of \['flat', 'map'\], got 'cube'"):
        FactorTransfer(factor="cube")  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [0, -1])
def test_bad_epochs_are_named(epochs: int) -> None:
    with pytest.raises(ValueError, match=f"paraphraser_epochs must be >= 1, got {epochs}"):
        FactorTransfer(paraphraser_epochs=epochs)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([(2, 3)], [(2, 3)]), ([(2, 7, 3)], [(2, 7, 3)]), ([STUDENT, STUDENT], [TEACHER, TEACHER]), ([], [TEACHER])],
)
def test_one_map_of_each_is_needed(student: list[Shape], teacher: list[Shape]) -> None:
    with pytest.raises(ValueError, match=r"FactorTransfer needs one map \[N, C, H, W\] of each network, got"):
        FactorTransfer().build(student, teacher)


def test_factors_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3, 2, 2\) and \(4, 5, 2, 2\)"):
        FactorTransfer()(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2), NO_TARGET)
    # Maps of mean squares have one shape whatever their channels.
    assert factor_distance(torch.ones(4, 3, 2, 2), torch.ones(4, 5, 2, 2), 1, "map").item() == pytest.approx(
        0, abs=1e-7
    )
