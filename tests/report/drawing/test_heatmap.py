import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.report.drawing import cka, confusion, similarity
from kd_lightning.report.drawing.heatmap import Colours, coarser, heatmap, off_diagonal

GREY = Colours("gray", 1, "x")


def cells(svg: str) -> np.ndarray:
    """The colours of the cells, RGBA."""
    found = re.search(r'<image[^>]*base64,\s*([^"]+)"[^>]*id="trace-cells"', svg)
    assert found is not None
    with Image.open(BytesIO(base64.b64decode(found[1]))) as image:
        return np.asarray(image.convert("RGBA"))


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>\n]+)</text>", svg)


def test_a_cell_is_a_pixel_in_the_order_of_the_matrix() -> None:
    svg = heatmap(
        torch.tensor([[0.0, 1.0, torch.nan]]), ["r"], ["a", "b", "c"], ("rows", "columns"), Colours("gray", 1, "x")
    )
    assert cells(svg).tolist() == [[[0, 0, 0, 255], [255, 255, 255, 255], [0, 0, 0, 0]]]


def test_values_are_written_in_the_colour_that_is_read_best() -> None:
    svg = heatmap(
        torch.tensor([[0.1, 0.0], [torch.nan, 0.9]]), ["a", "b"], ["c", "d"], ("", ""), Colours("gray", 1, "x")
    )
    written = re.findall(r'<text style="[^"]*?(fill: #ffffff)?"[^>]*>(0\.\d0)<', svg)
    assert written == [("fill: #ffffff", "0.10"), ("", "0.90")]


def test_of_many_classes_every_kth_has_a_label_and_no_cell_a_value() -> None:
    names = [f"class {number}" for number in range(100)]
    shown = texts(confusion(torch.ones(100, 100, dtype=torch.int64), names))
    labels = [text for text in shown if text.startswith("class")]
    assert labels[: len(labels) // 2] == labels[len(labels) // 2 :]  # rows as columns
    assert 12 <= len(labels) // 2 <= 20
    assert "class 0" in labels
    assert len(shown) - len(labels) < 12  # the three words and the scale


def test_confusion_leaves_out_where_both_agree_and_leaves_its_counts_alone() -> None:
    counts = torch.tensor([[90.0, 4.0], [1.0, 80.0]], dtype=torch.float64)
    svg = confusion(counts, ["cat", "<dog>"])
    assert counts.diag().tolist() == [90, 80]
    assert not {"90", "80"} & set(texts(svg))
    assert cells(svg)[..., 3].tolist() == [[0, 255], [255, 0]]
    assert {"teacher", "student", "images", "&lt;dog&gt;", "4", "1"} <= set(texts(svg))


def test_students_that_agree_everywhere_have_a_picture_too() -> None:
    assert cells(confusion(torch.diag(torch.tensor([3, 4])), ["a", "b"])).shape == (2, 2, 4)


def test_similar_classes_are_in_the_given_order() -> None:
    matrix = torch.tensor([[1.0, 0.0, 0.4], [0.1, 1.0, 0.2], [0.3, torch.nan, 1.0]])
    svg = similarity(matrix, ["first", "second", "third"], [2, 0, 1], "share")
    names = [text for text in texts(svg) if text in {"first", "second", "third"}]
    assert names[:3] == ["third", "first", "second"]
    assert {"0.30", "0.40"} <= set(texts(svg))
    assert cells(svg)[0, 2, 3] == 0  # third, second is nan
    assert cells(svg)[1, 0].tolist() == [253, 231, 36, 255]  # first, third is the largest: the end of viridis


def test_pictures_of_cka_have_one_scale() -> None:
    low, high = (cells(cka(torch.full((1, 2), value), ["s"], ["t1", "t2"])) for value in (0.2, 0.8))
    assert low.tolist() != high.tolist()


def test_a_fine_matrix_keeps_its_largest_values() -> None:
    matrix = torch.zeros(1000, 600)
    matrix[517, 3] = 5
    small = coarser(matrix)
    assert small.shape == (256, 256)
    assert small.max() == 5
    assert coarser(torch.eye(3)).equal(torch.eye(3))


def test_a_fine_matrix_is_empty_only_where_nothing_is_known() -> None:
    alike = torch.block_diag(*[torch.full((4, 4), 0.3)] * 250)
    assert coarser(off_diagonal(alike)).diag().tolist() == pytest.approx([0.3] * 256)
    assert coarser(torch.full((300, 300), torch.nan)).isnan().all()


def test_the_diagonal_alone_is_left_out() -> None:
    assert off_diagonal(torch.tensor([[1, 2], [3, 4]])).nan_to_num(-1).tolist() == [[-1, 2], [3, -1]]


def test_a_matrix_without_a_name_for_each_row_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("matrix must be [3, 2] as there are names, got [2, 2]")):
        heatmap(torch.ones(2, 2), ["a", "b", "c"], ["a", "b"], ("", ""), GREY)
