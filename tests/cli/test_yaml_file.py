"""YAML files that a reader and a parser understand alike."""

from pathlib import Path

import pytest

from kd_lightning.cli.yaml_file import check_yaml

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_pass(path: Path) -> None:
    check_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"c\.yaml, line 3, column 1: the key 'a' is stated twice"),
        ("a:\n  - {b: 1, b: 1}\n", r"c\.yaml, line 2, column 12: the key 'b' is stated twice"),
        ("a:\n  lr: -.INF\n", r"c\.yaml, line 2, column 7: -\.INF is not a finite number"),
        ("a: [1, .nan]\n", r"c\.yaml, line 1, column 8: \.nan is not a finite number"),
        ("a: {\n", r"c\.yaml is not YAML: "),
        ("a: *b\n", r"c\.yaml is not YAML: .*undefined alias"),
        ("- 1\n", r"c\.yaml must hold keys and values at its top"),
        ("", r"c\.yaml must hold keys and values at its top"),
    ],
)
def test_faults(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        check_yaml(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ValueError, match=r"c\.yaml is not YAML"):
        check_yaml(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no configuration .*nowhere\.yaml"):
        check_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["a: '.inf'\n", 'a: ".nan"\n', "a: x.inf\n", "a: {b: 1}\nc: {b: 1}\n"])
def test_what_is_no_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    check_yaml(path)
