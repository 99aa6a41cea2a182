import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from kd_lightning.models.output_store import HEADER, Layout, OutputStore, differences, row_sums, written_as

FACTS = {"teacher.weights": "abc", "data.seed": "0"}
LAYOUT = Layout(50, 6)


def store(path: Path, **changed: str) -> OutputStore:
    return OutputStore(path / "s" / "x.outputs", LAYOUT, FACTS | changed)


def rows_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def content(rows: np.ndarray) -> np.ndarray:
    return ((rows[:, None] * 7 + np.arange(6)) % 251).astype(np.uint8)


def test_what_is_written_is_read_by_another(tmp_path: Path) -> None:
    rows = rows_of(3, 49, 0)
    store(tmp_path).write(rows, content(rows))
    data, there = store(tmp_path).read(rows_of(0, 1, 49, 3))
    assert there.tolist() == [True, False, True, True]
    assert np.array_equal(data[[0, 2, 3]], content(rows_of(0, 49, 3)))


def test_the_file_is_as_large_as_is_said(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert made.path.stat().st_size == LAYOUT.size == HEADER + 4096 + 4096 + 300
    assert os.stat(made.path).st_blocks * 512 >= LAYOUT.size  # no holes that a full disk would tear


def test_each_flipped_byte_of_a_row_is_noticed(tmp_path: Path) -> None:
    made, rows = store(tmp_path), rows_of(7, 8)
    made.write(rows, content(rows))
    made.flush()
    for place in range(LAYOUT.data + 7 * 6, LAYOUT.data + 8 * 6):
        with made.path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 16]))
        again = store(tmp_path)
        assert again.read(rows)[1].tolist() == [False, True]
        assert again.damaged == 1
        again.write(rows_of(7), content(rows_of(7)))
        assert again.read(rows)[1].all()


def test_a_flipped_checksum_is_noticed(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.write(rows_of(1), content(rows_of(1)))
    with made.path.open("r+b") as file:
        file.seek(LAYOUT.sums + 4)
        file.write(b"\x99")
    assert not store(tmp_path).read(rows_of(1))[1].any()


def test_a_file_of_something_else_is_refused_with_the_difference(tmp_path: Path) -> None:
    store(tmp_path)
    with pytest.raises(ValueError, match=r"teacher.weights: the file has abc, this run def") as caught:
        store(tmp_path, **{"teacher.weights": "def"})
    assert "data.seed" not in str(caught.value)


def test_differences_far_inside_a_text_are_shown() -> None:
    long = "x" * 100
    assert differences({"a": long + "1"}, {"a": long + "2"}) == [f"a: the file has {long}1, this run {long}2"]
    assert differences({"a": "1"}, {}) == ["a: the file has 1, this run nothing"]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    made = store(tmp_path)
    os.truncate(made.path, LAYOUT.size - 1)
    with pytest.raises(ValueError, match="it is truncated or damaged; delete it"):
        store(tmp_path)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    made = store(tmp_path)
    with made.path.open("r+b") as file:
        file.seek(60)
        file.write(b"#")
    with pytest.raises(ValueError, match="the header of .* is damaged"):
        store(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.outputs").write_bytes(b"hello")
    with pytest.raises(ValueError, match="holds no stored outputs"):
        store(tmp_path)


def test_notes_last(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert made.notes() == {}
    made.note(examined={"teacher": [0.5, 100]})
    made.note(other=1)
    assert store(tmp_path).notes() == {"examined": {"teacher": [0.5, 100]}, "other": 1}


def test_no_room_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    huge = Layout(1 << 40, 1 << 10)
    with pytest.raises(OSError, match="there is no room for the .* GB of stored outputs"):
        OutputStore(tmp_path / "x.outputs", huge, FACTS)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["x.outputs.lock"])


def test_sizes_for_people() -> None:
    assert [written_as(n) for n in (1, 999_900, 20_400_000, 481e9)] == ["0.0 kB", "999.9 kB", "20.4 MB", "481.0 GB"]


def test_sums_are_those_of_zlib() -> None:
    assert row_sums(np.frombuffer(b"123456789", dtype=np.uint8)[None]).tolist() == [0xCBF43926]


def write_on_and_on(path: Path, seed: int, ready: Event) -> None:
    rng = np.random.default_rng(seed)
    store = OutputStore(path, Layout(4000, 64), {"a": "b"})
    ready.set()
    while True:
        rows = np.unique(rng.integers(0, 4000, 32))
        store.write(rows, ((rows[:, None] * 7 + np.arange(64)) % 251).astype(np.uint8))


def test_writers_killed_at_any_moment_leave_no_wrong_row(tmp_path: Path) -> None:
    path, context = tmp_path / "x.outputs", multiprocessing.get_context("fork")
    for seed in range(8):
        ready = [context.Event(), context.Event()]
        pair = [
            context.Process(target=write_on_and_on, args=(path, 2 * seed + who, ready[who]), daemon=True)
            for who in range(2)
        ]
        for each in pair:
            each.start()
        assert all(event.wait(60) for event in ready)
        for each in pair:
            each.kill()
            each.join()
        made = OutputStore(path, Layout(4000, 64), {"a": "b"})
        rows = np.arange(4000)
        data, there = made.read(rows)
        expected = ((rows[:, None] * 7 + np.arange(64)) % 251).astype(np.uint8)
        assert np.array_equal(data[there], expected[there])
    assert there.any()
