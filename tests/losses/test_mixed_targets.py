"""What mixup and CutMix make of every loss: it takes the mixed target, does not look at it, or says that it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kd_lightning.losses as package
from kd_lightning.losses import (
    CATKD,
    CRD,
    CWTM,
    DINO,
    DIST,
    DKD,
    DKPP,
    FSP,
    NKD,
    NST,
    OFA,
    PKT,
    RKD,
    SRRL,
    VID,
    WSLD,
    Activation,
    ActivationBoundary,
    AttentionProbabilities,
    AttentionTransfer,
    BatchNormStatistics,
    ClassBalance,
    CorrelationCongruence,
    CrossEntropy,
    CurriculumTemperature,
    Discrepancy,
    FactorTransfer,
    HardLabel,
    Hint,
    InBatchCRD,
    Loss,
    MultiLevelKD,
    OneHot,
    OverhaulFeature,
    ReferenceSoftTarget,
    RelationalAngle,
    RelationalDistance,
    ReviewKD,
    Similarity,
    SoftTarget,
    TeacherFree,
)

SAMPLES, CLASSES, CHANNELS = 8, 5, 6
INDEX = torch.arange(SAMPLES) * 3
TRAIN_TARGETS = torch.arange(30) * 7 % CLASSES
LABEL = TRAIN_TARGETS[INDEX]
OTHER = (LABEL + 1 + torch.arange(SAMPLES) % 3) % CLASSES
HEAD = nn.Linear(CHANNELS, CLASSES).double()
NORMS = [(torch.linspace(-1, 1, CHANNELS).double(), torch.ones(CHANNELS).double())] * 2
NAMED = {"index": INDEX, "number": torch.zeros_like(INDEX)}


def logits() -> Tensor:
    return 2 * torch.randn(SAMPLES, CLASSES).double()


def vectors() -> Tensor:
    return torch.randn(SAMPLES, CHANNELS).double()


def one_map() -> Tensor:
    return torch.randn(SAMPLES, CHANNELS, 4, 4).double()


def maps() -> list[Tensor]:
    return [torch.randn(SAMPLES, CHANNELS, 8, 8).double(), one_map()]


def attention() -> Tensor:
    return torch.randn(SAMPLES, 3, 5, 5).double().softmax(dim=-1)


def views() -> list[Tensor]:
    return [logits(), logits()]


def statistics() -> list[Tensor]:
    return [torch.rand(2, 2, CHANNELS).double() for _ in range(2)]


def built(loss: Loss, *shapes: tuple[int, ...]) -> Loss:
    loss.build(shapes, shapes)
    return loss.double().eval()


Case = tuple[Callable[[], Loss], Callable[[], Any], dict[str, Any]]
TWO_MAPS = ((2, CHANNELS, 8, 8), (2, CHANNELS, 4, 4))
LOSSES: dict[str, Case] = {
    "CrossEntropy": (CrossEntropy, logits, {}),
    "CrossEntropy smoothed": (lambda: CrossEntropy(0.1), logits, {}),
    "CWTM": (CWTM, logits, {}),
    "WSLD": (WSLD, logits, {}),
    "TeacherFree": (TeacherFree, logits, {}),
    "OneHot of drawn labels": (lambda: OneHot("drawn"), logits, {}),
    "DKD": (DKD, logits, {}),
    "NKD": (NKD, logits, {}),
    "OFA": (OFA, logits, {}),
    "Curriculum of DKD": (lambda: CurriculumTemperature(DKD()), logits, {"epoch": 3}),
    "InBatchCRD": (InBatchCRD, vectors, {}),
    "SoftTarget": (SoftTarget, logits, {}),
    "ReferenceSoftTarget": (ReferenceSoftTarget, logits, {}),
    "HardLabel": (HardLabel, logits, {}),
    "DIST": (DIST, logits, {}),
    "DKPP": (DKPP, logits, NAMED),
    "MultiLevelKD": (MultiLevelKD, logits, {}),
    "DINO": (lambda: DINO().eval(), views, {"epoch": 0}),
    "OneHot": (OneHot, logits, {}),
    "BatchNormStatistics": (BatchNormStatistics, statistics, {}),
    "Activation": (Activation, vectors, {}),
    "ClassBalance": (ClassBalance, logits, {}),
    "Discrepancy": (Discrepancy, logits, {}),
    "Hint": (lambda: Hint("none"), one_map, {}),
    "AttentionTransfer": (AttentionTransfer, maps, {}),
    "NST": (NST, maps, {}),
    "FSP": (FSP, maps, {}),
    "VID": (lambda: built(VID(), *TWO_MAPS), maps, {}),
    "ReviewKD": (lambda: built(ReviewKD(), *TWO_MAPS), maps, {}),
    "ActivationBoundary": (ActivationBoundary, maps, {}),
    "OverhaulFeature": (OverhaulFeature, maps, {"teacher_norms": NORMS}),
    "FactorTransfer": (FactorTransfer, one_map, {}),
    "CATKD": (CATKD, one_map, {"student_classifier": HEAD, "teacher_classifier": HEAD}),
    "SRRL": (SRRL, vectors, {"teacher_classifier": HEAD}),
    "AttentionProbabilities": (lambda: AttentionProbabilities("all"), attention, {}),
    "Similarity": (Similarity, maps, {}),
    "PKT": (PKT, vectors, {}),
    "RKD": (RKD, vectors, {}),
    "RelationalDistance": (RelationalDistance, vectors, {}),
    "RelationalAngle": (RelationalAngle, vectors, {}),
    "CorrelationCongruence": (CorrelationCongruence, vectors, {}),
}
AS_IT_IS = {"CrossEntropy", "CrossEntropy smoothed", "CWTM", "WSLD", "TeacherFree", "OneHot of drawn labels"}
BY_LARGEST = {"DKD", "NKD", "OFA", "Curriculum of DKD", "InBatchCRD"}
# The generator's, which do not ask the student.
GENERATOR = {"OneHot", "OneHot of drawn labels", "Activation", "BatchNormStatistics", "ClassBalance"}


def mixed(share: float) -> Tensor:
    """Targets of which the share of the label is given, and the rest is of another class."""
    return share * F.one_hot(LABEL, CLASSES).double() + (1 - share) * F.one_hot(OTHER, CLASSES)


def given(name: str) -> tuple[Any, Any]:
    """Features of student and teacher, which ask for a gradient."""
    make, needed = LOSSES[name][1], LOSSES[name][2]
    student, teacher = make(), make()
    if "teacher_classifier" in needed and "student_classifier" not in needed:
        student = one_map()  # SRRL's
    for each in (student, teacher):
        for part in each if isinstance(each, list) else [each]:
            part.requires_grad_()
    return student, teacher


def value_of(name: str, student: Any, teacher: Any, target: Tensor) -> Tensor:
    make, _, needed = LOSSES[name]
    torch.manual_seed(1)  # for losses that draw
    value: Tensor = make()(student, teacher, target, **needed)
    return value


def test_every_loss_is_here() -> None:
    exported = {value for name in package.__all__ if isinstance(value := getattr(package, name), type)}
    losses = {value for value in exported if issubclass(value, Loss)}
    assert {type(make()) for make, _, _ in LOSSES.values()} == losses - {Loss, CRD}


@pytest.mark.parametrize("name", LOSSES)
def test_a_mixed_target_gives_a_finite_value_whose_gradient_reaches_who_learns(name: str) -> None:
    student, teacher = given(name)
    value = value_of(name, student, teacher, mixed(0.7))
    assert value.ndim == 0
    assert value.isfinite()
    learner = teacher if name in GENERATOR else student
    gradients = torch.autograd.grad(value, learner)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_a_whole_target_is_its_label(name: str) -> None:
    student, teacher = given(name)
    by_label, by_share = (value_of(name, student, teacher, target) for target in (LABEL, mixed(1.0)))
    torch.testing.assert_close(by_share, by_label, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_makes_of_the_shares(name: str) -> None:
    student, teacher = given(name)
    label, seven, six, three = (
        value_of(name, student, teacher, target) for target in (LABEL, mixed(0.7), mixed(0.6), mixed(0.3))
    )
    if name in AS_IT_IS:
        assert not torch.isclose(seven, six)
    else:
        torch.testing.assert_close(seven, label)
        torch.testing.assert_close(six, label)
        assert torch.isclose(three, label) == (name not in BY_LARGEST)


@pytest.mark.parametrize("name", sorted(AS_IT_IS - {"WSLD", "TeacherFree"}))
def test_a_cross_entropy_is_linear_in_the_shares(name: str) -> None:
    student, teacher = given(name)
    whole, mean, other = (value_of(name, student, teacher, mixed(share)) for share in (1.0, 0.3, 0.0))
    torch.testing.assert_close(mean, 0.3 * whole + 0.7 * other)


@pytest.mark.parametrize("loss", [DKD, NKD, OFA, InBatchCRD])
def test_taken_by_the_largest_class_is_documented(loss: type[Loss]) -> None:
    assert "mixed target is taken by its largest class" in " ".join(str(loss.__doc__).split())


def test_a_bank_of_samples_refuses_a_mixed_target_by_name() -> None:
    loss = CRD(CHANNELS, 20, temperature=0.2)
    needed = NAMED | {"train_targets": TRAIN_TARGETS}
    assert loss(vectors(), vectors(), LABEL, **needed).isfinite()
    with pytest.raises(ValueError, match=r"CRD cannot take mixed targets.*switch mixing off"):
        loss(vectors(), vectors(), mixed(0.7), **needed)
