"""The document of a comparison: which sections it has, and what stands in them."""

from typing import Any

import pytest
import torch

from kd_lightning.distillers.notable_images import Notable
from kd_lightning.report import as_page, compare
from kd_lightning.report.examined import Cka

RIGHT = [0, 1, 2, 0, 1]
ALWAYS = ["Figures", "Learning curves", "Calibration"]
TAUGHT = ["Differences", "Student against teacher", "Dark knowledge"]


def titles(page: str) -> list[str]:
    return [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]]


@pytest.fixture
def shown() -> Notable:
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    return Notable(3, image, 0, torch.tensor([0.0, 5.0, 0.0]), torch.tensor([5.0, 0.0, 0.0]))


def test_without_a_teacher_nothing_is_said_of_one(make: Any) -> None:
    page = as_page(compare([make("alone", [0, 1, 2, 1, 2])]))
    assert titles(page) == ALWAYS
    assert "gap recovered" not in page.partition("<h2>")[0]


def test_everything_that_is_known_is_shown(make: Any, shown: Notable) -> None:
    cka = Cka(torch.tensor([[0.125, 0.25]]), torch.tensor([[0.5, 0.75]]))
    kd = make("kd", [0, 1, 2, 1, 2], RIGHT)._replace(missed=[shown], unsure=[shown], cka=cka)
    page = as_page(compare([make("alone", [0, 1, 0, 1, 2]), kd]))
    assert sorted(titles(page)) == sorted(
        [*ALWAYS, *TAUGHT, "What the student gets wrong and the teacher right", "Features"]
    )
    head = page.partition("<h2>")[0]
    assert "60.00 %" in head
    assert "33%" in head, "(0.6 - 0.4) / (1 - 0.4)"
    assert "10.0x" in head
    assert "teacher far from the student" in head
    assert page.count("<img") == 2
    for text in ("test image 3", "student: b", "T = 4", "before the training", "0.75", ">the teacher<", ">kd<"):
        assert text in page


def test_a_teacher_of_several_methods_is_shown_once(make: Any, shown: Notable) -> None:
    runs = [make(name, [0, 1, 2, 1, 2], RIGHT, loss=name)._replace(unsure=[shown]) for name in ("kd", "dkd")]
    page = as_page(compare(runs))
    assert page.count("Class similarity in the teacher") == 1
    assert "teacher of kd, dkd" in page
    assert page.count("<img") == 1
    assert all(f">{name}<" in page.partition("<summary>Soft targets")[2] for name in ("the teacher", "kd", "dkd"))


def test_more_students_than_colours_have_several_pictures(make: Any, shown: Notable) -> None:
    runs = [make(f"m-{name}", RIGHT, RIGHT, loss=name)._replace(unsure=[shown]) for name in "abcdefg"]
    page = as_page(compare(runs))
    assert "Soft targets: m-a, m-b, m-c, m-d, m-e<" in page
    assert "Soft targets: m-f, m-g<" in page


def test_differences_have_their_whole_names(make: Any) -> None:
    names = [f"attention transfer with {kind} weights" for kind in ("published", "chosen")]
    page = as_page(compare([make(name, RIGHT, RIGHT, loss=name) for name in names]))
    assert f"{names[1]} less {names[0]}" in page


def test_why_features_are_not_compared_is_told(make: Any) -> None:
    page = as_page(compare([make("at", RIGHT, RIGHT)._replace(cka="Sequential has no stages")]))
    assert "Features" in titles(page)
    assert "at is left out: Sequential has no stages." in page


def test_parts_are_shown_where_there_are_some(make: Any) -> None:
    page = as_page(compare([make("deit", RIGHT, parts={"head": [0, 1, 2, 1, 2]})]))
    assert "Parts" in titles(page)
    assert "deit: head" in page


def test_the_first_line_says_what_was_tested(make: Any) -> None:
    alone, kd = make("alone", RIGHT), make("kd", RIGHT, RIGHT)
    same = as_page(compare([alone, kd], "best")).partition("<h2>")[0]
    assert "2 methods, 2 runs, 5 test images of 3 classes. Tested at the best checkpoint of each run." in same
    fewer = kd._replace(student=kd.student[:4], teacher=kd.teacher[:4], target=kd.target[:4])
    apart = as_page(compare([alone, fewer])).partition("<h2>")[0]
    assert "5 test images of 3 classes (alone); 4 test images of 3 classes (kd)" in apart


def test_names_are_shown_as_they_are(make: Any) -> None:
    page = as_page(compare([make("<b>", RIGHT)._replace(classes=["a & b", "<i>", "c"])]))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
