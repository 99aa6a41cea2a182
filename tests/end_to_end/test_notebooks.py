"""The notebooks run from top to bottom, away from the repository, and show what is stored in them."""

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ALL = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
PICTURE = "image/png"


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells: Sequence[nbformat.NotebookNode]) -> list[str]:
    """The lines that cells print."""
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()


def pictures(cells: Sequence[nbformat.NotebookNode]) -> list[str]:
    return [output.data[PICTURE] for cell in cells for output in cell.outputs if PICTURE in output.get("data", {})]


def words(lines: Sequence[str]) -> list[str]:
    """Lines without their figures, which differ between machines in the last digits."""
    return [re.sub(r"[\d.,+\-\s]", "", line) for line in lines]


def figures(line: str) -> list[float]:
    """The numbers in a line."""
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?", line)]


def row(lines: Sequence[str], name: str) -> list[float]:
    """The numbers in the one line that begins with a name."""
    (found,) = (line for line in lines if line.startswith(f"{name} "))
    return figures(found.removeprefix(name))


def lines_of(name: str, folder: Path) -> list[str]:
    """What a notebook prints when it is run in a folder; it leaves no file, and shows what is stored in it."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    stored, drawn = printed(code(notebook)), len(pictures(code(notebook)))
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    assert list(folder.iterdir()) == []
    assert len(pictures(code(notebook))) == drawn
    lines = printed(code(notebook))
    assert words(lines) == words(stored)
    return lines


def test_the_quickstart_compares_a_student_alone_and_distilled(tmp_path: Path) -> None:
    name = "01_quickstart.ipynb"
    table, shown = lines_of(name, tmp_path), printed(code(nbformat.read(NOTEBOOKS / name, as_version=4)))
    assert [line.split()[0] for line in table] == ["parameters", "teacher", "alone", "distilled"]
    teacher, alone, distilled = (float(line.split()[-1]) for line in table[1:])
    assert teacher > max(alone, distilled)
    assert min(alone, distilled) > 80
    for line, stored in zip(table[1:], shown[1:], strict=True):
        *sizes, top1 = figures(line)
        assert sizes == figures(stored)[:-1]
        assert top1 == pytest.approx(figures(stored)[-1], abs=4)  # machines round otherwise, and train on


@pytest.mark.slow
def test_answers_grow_softer_with_the_temperature_and_tell_less_after_label_smoothing(tmp_path: Path) -> None:
    lines = lines_of("02_dark_knowledge.ipynb", tmp_path)
    begin = next(number for number, line in enumerate(lines) if "entropy of those" in line) + 1
    by_temperature = [figures(line) for line in lines[begin : begin + 6]]
    temperature, *softness = zip(*by_temperature, strict=True)
    assert temperature == (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    for column, limit in zip(softness, (3.322, 0.9, 3.170), strict=True):
        assert list(column) == sorted(set(column))
        assert 0 < column[0] < column[-1] < limit
    assert 3.31 < figures(next(line for line in lines if "one-hot" in line))[0] <= 3.32
    told = [figures(line)[1:] for line in lines if line.startswith("    T =")]
    assert len(told) == 4
    assert all(by_class > 0 and by_image > 0 and by_class + by_image < 3.17 for by_class, by_image in told)
    top1, entropy, by_class, by_image, spread = row(lines, "labels")
    smoothed = row(lines, "smoothed labels")
    assert min(top1, smoothed[0]) > 95
    assert smoothed[1] > entropy
    assert 2 * smoothed[2] < by_class
    assert 2 * smoothed[3] < by_image
    assert smoothed[4] < spread


@pytest.mark.slow
def test_the_losses_are_compared_over_seeds_and_with_the_student_alone(tmp_path: Path) -> None:
    lines = lines_of("03_compare_losses.ipynb", tmp_path)
    alone, deviation = row(lines, "alone")
    assert 75 < alone < 95
    assert deviation > 0
    for method in ("KD", "DKD", "DIST", "hint", "RKD-D"):
        mean, deviation, difference, low, high = row(lines, method)
        assert mean > 50
        assert deviation > 0
        assert difference == pytest.approx(mean - alone, abs=0.011)
        assert low < difference < high
    assert 1 < figures(next(line for line in lines if "standard error" in line))[-1] < 2.5


@pytest.mark.slow
def test_every_generation_and_ensemble_is_reported_beside_independent_networks(tmp_path: Path) -> None:
    lines = lines_of("04_born_again.ipynb", tmp_path)
    assert "generations: 0.safetensors, 1.safetensors, 2.safetensors, 3.safetensors" in lines
    each = [row(lines, f"generation_{number}") for number in range(4)]
    together = [row(lines, f"ensemble_{count}") for count in (2, 3, 4)]
    assert all(top1 > 75 and loss > 0 and 0 <= ece <= 1 for top1, loss, ece in each + together)
    mean, all_four, apart = row(lines, "born again")
    assert mean == pytest.approx(sum(top1 for top1, *_ in each) / 4, abs=0.02)
    assert all_four == pytest.approx(together[-1][0], abs=0.02)  # read from the files, as the test read them
    assert 0 < apart < 50
    assert min(row(lines, "independent")[:2]) > 75


@pytest.mark.slow
def test_both_heads_are_reported_and_their_tokens_come_together(tmp_path: Path) -> None:
    lines = lines_of("05_deit_tokens.ipynb", tmp_path)
    rows = {name: [figures(line) for line in lines if line.startswith(f"{name} ")] for name in ("hard", "soft")}
    assert row(lines, "alone")[0] > 70
    for heads, _class_head, _distillation_head, cosines in rows.values():
        assert len(heads) == 4
        assert min(heads) > 70
        *depths, between_heads = cosines
        assert len(depths) == 4
        assert depths[0] < 0.8 < 0.9 < depths[-1] <= 1
        assert -1 <= between_heads <= 1


@pytest.mark.slow
def test_a_network_and_a_loss_of_ones_own_are_distilled_and_used_without_the_package(tmp_path: Path) -> None:
    lines = lines_of("06_bring_your_own.ipynb", tmp_path)
    assert any(line.startswith("tap 'mixd'") and "nearest first: mixed" in line for line in lines)
    assert row(lines, "teacher")[1] > 95
    parameters, top1, agreement = row(lines, "distilled")
    assert parameters == 1954
    assert top1 > 85
    assert agreement > 85
    assert "the same logits as in training: True" in lines


@pytest.mark.parametrize("name", ALL)
def test_the_stored_outputs_are_complete_and_of_no_machine(name: str) -> None:
    path = NOTEBOOKS / name
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert pictures(cells)
    for cell in cells:
        assert bool(printed([cell])) == ("print(" in cell.source)
        assert len(pictures([cell])) == cell.source.count("plt.show()")
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
    text = "\n".join(printed(cells)) + "".join(
        str(output.get("data", {}).get(kind, ""))
        for cell in cells
        for output in cell.outputs
        for kind in ("text/plain", "text/html")
    )
    assert not re.search(r"(?:^|[\s\"'(=])(?:/\w+/|~/|[A-Z]:\\)|0x[0-9a-f]{6}", text)
