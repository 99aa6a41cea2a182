from types import SimpleNamespace

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers.data_facts import class_names


def test_the_names_of_the_classes() -> None:
    data = DigitsDataModule()
    data.setup()
    assert class_names(data, 10) == [str(digit) for digit in range(10)]
    assert class_names(SimpleNamespace(classes=["cat", "dog"]), 2) == ["cat", "dog"]


def test_classes_without_names_are_numbered() -> None:
    assert class_names(None, 2) == class_names(SimpleNamespace(classes=None), 2) == ["0", "1"]
