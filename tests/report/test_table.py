from typing import Any

from rich.console import Console

from kd_lightning.report.methods import Method, rows
from kd_lightning.report.table import TableData, costs, for_markdown, for_terminal, reached, size, width

RIGHT = [0, 1, 2, 0, 1]


def test_what_is_reached(make: Any) -> None:
    alone = Method("alone", [make("a0", [0, 1, 2, 1, 2]), make("a1", [0, 1, 1, 1, 2])])
    kd = Method("kd", [make("k", [0, 1, 2, 0, 2], RIGHT, best=0.8)])
    table = reached(rows([alone, kd]))
    by_heading = [dict(zip(table.headings, cells, strict=True)) for cells in table.rows]
    assert [row["top-1 %"] for row in by_heading] == ["50.00 ± 14.14", "80.00"]
    assert [row["at the best checkpoint"] for row in by_heading] == ["-", "80.00"]
    assert [row["teacher's top-1 %"] for row in by_heading] == ["-", "100.00"]
    assert [row["gap recovered"] for row in by_heading] == ["-", "60%"]
    assert [row["seeds"] for row in by_heading] == ["2", "1"]


def test_what_it_costs(make: Any) -> None:
    table = costs(rows([Method("alone", [make("a", RIGHT)]), Method("kd", [make("k", RIGHT, RIGHT)])]))
    assert table.rows == [
        ["alone", "100", "5,000", "0.4 kB", "2.00", "10.00", "-", "-", "-"],
        ["kd", "100", "5,000", "0.4 kB", "2.00", "10.00", "10.0x", "2.00x", "10.00x"],
    ]


def test_sizes_for_a_reader() -> None:
    assert [size(440), size(999_999), size(1_234_567)] == ["0.4 kB", "1000.0 kB", "1.23 MB"]


def test_a_name_cannot_break_a_table_in_markdown() -> None:
    assert for_markdown(TableData(["", "x"], [["a|b", "1"]])) == "|  | x |\n| --- | ---: |\n| a\\|b | 1 |\n"


def test_the_terminal_shows_every_cell() -> None:
    console = Console(width=60, record=True)
    console.print(for_terminal(TableData(["", "x"], [["kd", "1.5 ± 0.1"]]), "Title", 60))
    shown = console.export_text()
    assert all(text in shown for text in ("Title", "kd", "1.5 ± 0.1"))


def test_brackets_are_no_markup() -> None:
    console = Console(width=60, record=True)
    console.print(for_terminal(TableData(["", "[bold]x"], [["kd [ours]", "[/red]"]]), "[dim]Title", 60))
    shown = console.export_text()
    assert all(text in shown for text in ("[dim]Title", "[bold]x", "kd [ours]", "[/red]"))


def test_a_table_too_wide_for_the_terminal_is_turned() -> None:
    wide = TableData(["", "one", "two", "three"], [["kd", "1", "2", "3"], ["at", "4", "5", "6"]])
    assert width(wide) == 5 + 6 + 6 + 8 + 1
    assert [column.header for column in for_terminal(wide, "t", 26).columns] == ["", "one", "two", "three"]
    made = for_terminal(wide, "t", 25)
    assert [column.header for column in made.columns] == ["", "kd", "at"]
    assert [list(column.cells) for column in made.columns][1] == ["1", "2", "3"]
