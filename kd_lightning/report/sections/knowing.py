"""Sections on knowledge: what the teacher's soft targets say, and how alike features have become."""

from collections.abc import Iterable, Sequence

from kd_lightning.distillers.notable_images import Notable
from kd_lightning.report import drawing
from kd_lightning.report.dark_knowledge import class_similarity, clustered_order, information
from kd_lightning.report.examined import Cka
from kd_lightning.report.methods import Method
from kd_lightning.report.page import Gallery, Picture, Section, Tile
from kd_lightning.report.table import TableData
from kd_lightning.report.teachers import Taught, taught

TEMPERATURES = (1.0, 4.0)
STUDENTS = 5  # beside the teacher in one picture: there are six colours


def _tile(teacher: Taught, methods: Sequence[Method], shown: Notable) -> Tile:
    run = teacher.run
    at = run.rows.tolist().index(shown.row)
    logits = {"the teacher": teacher.teacher[at], **{method.name: method.runs[0].student[at] for method in methods}}
    picture = Picture(
        drawing.soft_targets(logits, run.classes, shown.target, TEMPERATURES),
        "",
        f"Class probabilities of test image {shown.row} at T = 1 and T = 4",
    )
    return Tile(shown.image, run.classes[shown.target], [f"test image {shown.row}"], picture)


def _soft_targets(teachers: Sequence[Taught]) -> Iterable[Gallery]:
    """The images of which each teacher is least sure, with what it says of them and what its students do."""
    for number, teacher in enumerate(teachers):
        for start in range(0, len(teacher.methods), STUDENTS):
            methods = teacher.methods[start : start + STUDENTS]
            yield Gallery(
                f"Soft targets: {', '.join(method.name for method in methods)}",
                [_tile(teacher, methods, shown) for shown in teacher.run.unsure],
                unfolded=number == start == 0,
            )


def _similarity(teacher: Taught) -> Picture:
    similarity = class_similarity(teacher.teacher, teacher.run.target, TEMPERATURES[-1])
    order = clustered_order(similarity)
    return Picture(
        drawing.similarity(similarity, teacher.run.classes, order, "mean soft target at T = 4"),
        f"Teacher of {teacher.names}: which classes (columns) it sees in images of a class (rows), "
        "neighbours by average linkage",
        "Class similarity in the teacher's soft targets, clustered",
    )


def _bits(teachers: Sequence[Taught]) -> TableData:
    rows = []
    for teacher in teachers:
        for temperature in TEMPERATURES:
            found = information(teacher.teacher, teacher.run.target, temperature)
            rows.append(
                [
                    f"teacher of {teacher.names}, T = {temperature:g}",
                    f"{found.label:.2f}",
                    f"{found.entropy:.2f}",
                    f"{found.effective_classes:.2f}",
                    f"{found.beyond:.2f}",
                ]
            )
    return TableData(["", "one-hot label", "soft target's entropy", "effective classes", "beyond the label"], rows)


def dark_knowledge(methods: Sequence[Method]) -> Iterable[Section]:
    """What the teachers' soft targets say beyond the label."""
    teachers = taught(methods)
    if teachers:
        yield Section(
            "Dark knowledge",
            "Bits for an image: what a one-hot label says, and what a soft target says of the image beyond it, that is "
            "the mutual information of image and soft class given the label. The images are those of which the teacher "
            "is least sure; the label is bold. Of each method the first seed is shown.",
            tables=[_bits(teachers)],
            pictures=[_similarity(teacher) for teacher in teachers],
            galleries=list(_soft_targets(teachers)),
        )


def features(methods: Sequence[Method]) -> Iterable[Section]:
    """CKA of student and teacher stages, for methods that match features."""
    pictures: list[Picture] = []
    text = (
        "Linear CKA between the student's stages and the teacher's, on the first test images; 1 where features are "
        "the same up to rotation and scale."
    )
    for method in methods:
        found = method.runs[0].cka
        if isinstance(found, str):
            text += f"\n\n{method.name} is left out: {found}."
        if not isinstance(found, Cka):
            continue
        stages = [[f"stage {number}" for number in range(1, count + 1)] for count in found.before.shape]
        pictures += [
            Picture(
                drawing.cka(matrix, *stages), f"{method.name}, {when}", f"CKA of {method.name} and its teacher {when}"
            )
            for when, matrix in (("before the training", found.before), ("after it", found.after))
        ]
    if any(method.runs[0].cka is not None for method in methods):
        yield Section("Features", text, pictures=pictures)
