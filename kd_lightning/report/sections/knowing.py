"""Sections on knowledge: what the teacher's soft targets say, and how alike features have become."""

from collections.abc import Iterable, Sequence

from kd_lightning.distillers.notable_images import Notable
from kd_lightning.report import drawing
from kd_lightning.report.dark_knowledge import class_similarity, clustered_order, information
from kd_lightning.report.examined import Examined
from kd_lightning.report.methods import Method
from kd_lightning.report.page import Gallery, Picture, Section, Tile
from kd_lightning.report.table import TableData
from kd_lightning.report.teachers import Taught, taught

TEMPERATURES = (1.0, 4.0)


def _tile(run: Examined, shown: Notable) -> Tile:
    logits = {} if shown.teacher is None else {"teacher": shown.teacher}
    logits["student"] = shown.student
    picture = Picture(
        drawing.soft_targets(logits, run.classes, shown.target, TEMPERATURES),
        "",
        f"Class probabilities of test image {shown.row} at T = 1 and T = 4",
    )
    return Tile(shown.image, run.classes[shown.target], [f"test image {shown.row}"], picture)


def _similarity(teacher: Taught) -> Picture:
    similarity = class_similarity(teacher.teacher, teacher.run.target, TEMPERATURES[-1])
    order = clustered_order(similarity)
    return Picture(
        drawing.similarity(similarity, teacher.run.classes, order, "mean soft target at T = 4"),
        f"Teacher of {', '.join(teacher.names)}: which classes (columns) it sees in images of a class (rows), "
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
                    f"teacher of {', '.join(teacher.names)}, T = {temperature:g}",
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
            "is least sure; the label is bold.",
            tables=[_bits(teachers)],
            pictures=[_similarity(teacher) for teacher in teachers],
            galleries=[
                Gallery(
                    f"Soft targets: {', '.join(teacher.names)}",
                    [_tile(teacher.run, shown) for shown in teacher.run.unsure],
                    unfolded=number == 0,
                )
                for number, teacher in enumerate(teachers)
            ],
        )


def features(methods: Sequence[Method]) -> Iterable[Section]:
    """CKA of student and teacher stages, for methods that match features."""
    pictures = []
    for method in methods:
        if (found := method.runs[0].cka) is None:
            continue
        stages = [[f"stage {number}" for number in range(1, count + 1)] for count in found.before.shape]
        pictures += [
            Picture(
                drawing.cka(matrix, *stages), f"{method.name}, {when}", f"CKA of {method.name} and its teacher {when}"
            )
            for when, matrix in (("before the training", found.before), ("after it", found.after))
        ]
    if pictures:
        yield Section(
            "Features",
            "Linear CKA between the student's stages and the teacher's, on the first test images; 1 where features are "
            "the same up to rotation and scale.",
            pictures=pictures,
        )
