"""Sections on decisions: how sure, how far from the teacher's, and which images they miss."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from kd_lightning.report import drawing
from kd_lightning.report.calibration import reliability
from kd_lightning.report.examined import Examined
from kd_lightning.report.methods import Method
from kd_lightning.report.page import Gallery, Picture, Section, Tile
from kd_lightning.report.per_class import changes, teacher_student_confusion
from kd_lightning.report.teachers import taught


def _reliability(name: str, logits: Tensor, run: Examined) -> Picture:
    found = reliability(logits.softmax(dim=1), run.target)
    svg = drawing.reliability(found.confidence, found.accuracy, found.count / found.count.sum())
    return Picture(svg, f"{name}: ECE {100 * found.ece:.2f} %", f"Reliability diagram of {name}")


def calibration(methods: Sequence[Method]) -> Iterable[Section]:
    """Reliability diagrams of each method, and of each teacher."""
    pictures = [_reliability(method.name, method.runs[0].student, method.runs[0]) for method in methods]
    pictures += [_reliability(f"teacher of {found.names}", found.teacher, found.run) for found in taught(methods)]
    yield Section(
        "Calibration",
        "A network is calibrated if it is right as often as it is sure. Of each method the first seed is shown.",
        pictures=pictures,
    )


def against_teacher(methods: Sequence[Method]) -> Iterable[Section]:
    """Where student and teacher decide differently, and which classes gain or lose by it."""
    pictures: list[Picture] = []
    for method in methods:
        run = method.runs[0]
        if run.teacher is None:
            continue
        student, teacher, count = run.student.argmax(dim=1), run.teacher.argmax(dim=1), len(run.classes)
        confusion = drawing.confusion(teacher_student_confusion(teacher, student, count), run.classes)
        changed = changes(run.target, student, teacher, count)
        gains = 100 * (changed.accuracy - changed.other).nan_to_num()
        apart = int((student != teacher).sum())
        pictures += [
            Picture(
                confusion,
                f"{method.name}: {apart} of {len(student)} images are decided otherwise than by the teacher",
                f"What {method.name} and its teacher decide where they differ",
            ),
            Picture(
                drawing.bars(gains, run.classes, "points over the teacher"),
                f"{method.name}: accuracy of each class, less the teacher's; {int(changed.gained.sum())} images "
                f"gained, {int(changed.lost.sum())} lost",
                f"Gains and losses of {method.name} against its teacher by class",
            ),
        ]
    if pictures:
        yield Section("Student against teacher", "Of each method the first seed is shown.", pictures=pictures)


def missed(methods: Sequence[Method]) -> Iterable[Section]:
    """Images that the student gets wrong and the teacher right."""
    galleries: list[Gallery] = []
    for method in methods:
        run = method.runs[0]
        if run.teacher is None:
            continue
        tiles = [
            Tile(
                shown.image,
                run.classes[shown.target],
                [f"student: {run.classes[int(shown.student.argmax())]}", f"test image {shown.row}"],
            )
            for shown in run.missed
        ]
        if tiles:
            galleries.append(Gallery(f"{method.name}: the first {len(tiles)}", tiles, unfolded=not galleries))
    if galleries:
        yield Section("What the student gets wrong and the teacher right", galleries=galleries)
