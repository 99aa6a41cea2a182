"""Flags: what the figures of a distillation warn of."""

from typing import NamedTuple

from torch import Tensor

from kd_lightning.distillers.metrics import kl_divergence
from kd_lightning.report.dark_knowledge import entropy
from kd_lightning.report.intervals import difference_over_images

# On the digits, teachers have a median confidence of 0.999 and a spread of 2.4 to 3.0 nats; trained with a label
# smoothing of 0.1 or 0.2, at most 0.92 and 0.5 to 0.8 nats. The bounds lie between.
FLAT_CONFIDENCE = 0.97
FLAT_SPREAD = 1.25  # nats: a factor of 3.5 between typical wrong classes
ONE_HOT_BITS = 0.1  # all wrong classes together have about one percent then
CLOSE_RATIO = 1.5  # the pairs of the standard protocols have 1.9 (ResNet-34 to ResNet-18) and more
FAR_RATIO = 10.0  # ResNet-110 to ResNet-8, which Mirzadeh et al. bridge by assistants, is 21
FAR_AGREEMENT = 0.1  # below the teacher's top-1, which is how often the teacher agrees with the labels
FAR_KL = 1.0  # nats: what the teacher expects has e times less probability with the student


class Flag(NamedTuple):
    """A warning.

    Attributes:
        name: Of what, in a word or two.
        said: In a sentence, with what may help.
        figures: What it rests on.
    """

    name: str
    said: str
    figures: dict[str, float]


def spread_of_wrong(logits: Tensor) -> Tensor:
    """Standard deviation, in nats, of the log-probabilities of all classes but the largest; ``[M]`` for ``[M, C]``.

    How much the largest one has does not matter; C >= 3.
    """
    ordered = logits.double().sort(dim=1).values
    return ordered[:, :-1].std(dim=1)


def flattened(teacher: Tensor) -> Flag | None:
    """Raised if a teacher of three classes or more is never quite sure and its wrong classes are nearly equal.

    Source: Müller, Kornblith, Hinton, "When Does Label Smoothing Help?", NeurIPS 2019, sec. 4: smoothing erases what
    the wrong classes say of each other.

    Args:
        teacher: Logits ``[M, C]``.
    """
    if teacher.shape[1] < 3:
        return None
    confidence = float(teacher.double().softmax(dim=1).amax(dim=1).median())
    spread = float(spread_of_wrong(teacher).mean())
    if confidence >= FLAT_CONFIDENCE or spread >= FLAT_SPREAD:
        return None
    said = (
        f"The teacher's soft targets look flattened: its median confidence is {confidence:.2f} and its wrong classes "
        f"are nearly equal (their log-probabilities spread by {spread:.2f} nats), as after label smoothing, mixing or "
        "too short a training. Take a teacher that was trained without."
    )
    return Flag("flattened soft targets", said, {"confidence": confidence, "spread": spread})


def near_one_hot(teacher: Tensor, temperature: float) -> Flag | None:
    """Raised if soft targets say hardly more than the teacher's decision at the temperature that is used.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, sec. 2.

    Args:
        teacher: Logits ``[M, C]``.
        temperature: T > 0.
    """
    bits = float(entropy(teacher, temperature).mean())
    if bits >= ONE_HOT_BITS:
        return None
    said = (
        f"The teacher's soft targets are nearly one-hot: {bits:.3f} bits of entropy at T = {temperature:g}. "
        "The temperature is too low for a teacher that is so sure."
    )
    return Flag("near one-hot soft targets", said, {"entropy": bits, "temperature": temperature})


def too_close(correct_student: Tensor, correct_teacher: Tensor, ratio: float) -> Flag | None:
    """Raised if the teacher is not measurably ahead of the student, or hardly larger.

    Args:
        correct_student: Whether each image is right, bool ``[M]``.
        correct_teacher: The same of the teacher.
        ratio: Parameters of the teacher over those of the student.
    """
    lead = difference_over_images(correct_teacher, correct_student)
    reasons = []
    if lead.low <= 0:
        reasons.append(
            f"is {100 * lead.difference:+.2f} points ahead of the student on the test images "
            f"(95 % interval {100 * lead.low:+.2f} to {100 * lead.high:+.2f})"
        )
    if ratio < CLOSE_RATIO:
        reasons.append(f"has {ratio:.2f} times the student's parameters")
    if not reasons:
        return None
    said = f"The teacher is close to the student: it {' and '.join(reasons)}. A stronger one may have more to teach."
    figures = {"lead": lead.difference, "low": lead.low, "high": lead.high, "parameters": ratio}
    return Flag("teacher close to the student", said, figures)


def too_far(student: Tensor, teacher: Tensor, target: Tensor, ratio: float) -> Flag | None:
    """Raised if the teacher is many times larger and the student does not follow it.

    Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020.

    Args:
        student: Logits ``[M, C]``.
        teacher: Logits ``[M, C]``.
        target: Labels, int64 ``[M]``.
        ratio: Parameters of the teacher over those of the student.
    """
    decision = teacher.argmax(dim=1)
    agreement = float((student.argmax(dim=1) == decision).double().mean())
    top1 = float((decision == target).double().mean())
    kl = float(kl_divergence(student, teacher).mean())
    if ratio < FAR_RATIO or (agreement > top1 - FAR_AGREEMENT and kl < FAR_KL):
        return None
    said = (
        f"The teacher may be too far from the student: it has {ratio:.0f} times the parameters, and the student agrees "
        f"with it on {agreement:.1%} of the test images (KL {kl:.2f} nats), where its own top-1 is {top1:.1%}. "
        "An assistant of middle size or a longer training may help."
    )
    figures = {"parameters": ratio, "agreement": agreement, "teacher_top1": top1, "kl": kl}
    return Flag("teacher far from the student", said, figures)


def flags(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    soft_targets: bool,
    temperature: float | None,
    student_params: int,
    teacher_params: int,
) -> list[Flag]:
    """All flags that are raised by answers to the same test images.

    Args:
        student: Logits ``[M, C]``, M >= 2.
        teacher: Logits ``[M, C]``.
        target: Labels, int64 ``[M]``.
        soft_targets: Whether soft targets are learnt.
        temperature: That they are learnt at, where it is one fixed number.
        student_params: Number of parameters, >= 1.
        teacher_params: The same of the teacher.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if student.shape != teacher.shape or student.ndim != 2 or target.shape != student.shape[:1]:
        shapes = [tuple(each.shape) for each in (student, teacher, target)]
        raise ValueError(f"student and teacher must be [M, C] and target [M], got {shapes}")
    ratio = teacher_params / student_params
    correct = [each.argmax(dim=1) == target for each in (student, teacher)]
    found = [
        flattened(teacher) if soft_targets else None,
        near_one_hot(teacher, temperature) if temperature is not None else None,
        too_close(correct[0], correct[1], ratio),
        too_far(student, teacher, target, ratio),
    ]
    return [flag for flag in found if flag is not None]
