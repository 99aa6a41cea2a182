"""The notebooks run from top to bottom, away from the repository."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a folder; a cell that fails is an error."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def test_the_quickstart_shows_a_table_and_a_picture_and_leaves_no_files(tmp_path: Path) -> None:
    notebook = executed(NOTEBOOKS / "01_quickstart.ipynb", tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    table = "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()
    assert [line.split()[0] for line in table] == ["parameters", "teacher", "alone", "distilled"]
    teacher, alone, distilled = (float(line.split()[-1]) for line in table[1:])
    assert teacher > max(alone, distilled)
    assert min(alone, distilled) > 80
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert list(tmp_path.iterdir()) == []
