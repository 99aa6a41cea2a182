"""ImageNet's folders are WordNet numbers, its classes have names."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from timm.data.imagenet_info import ImageNetInfo

from kd_lightning.datamodules.imagenet import ImageNetDataModule, class_names

MakeFolder = Callable[[dict[str, int]], Path]


def test_wordnet_numbers_get_their_names() -> None:
    assert class_names(["n01440764", "n03000247"]) == (
        "tench, Tinca tinca",
        "chain mail, ring mail, mail, chain armor, chain armour, ring armor, ring armour",
    )


def test_unknown_numbers_stay() -> None:
    assert class_names(["n99999999", "tench"]) == ("n99999999", "tench")


def test_two_classes_of_one_name_are_told_apart() -> None:
    assert class_names(["n02012849", "n03126707"]) == ("crane (n02012849)", "crane (n03126707)")
    assert class_names(["n02012849"]) == ("crane",)


def test_all_thousand_names_are_different_and_in_the_usual_order() -> None:
    wnids = ImageNetInfo().label_names()
    names = class_names(wnids)
    assert len(set(names)) == 1000
    assert wnids == sorted(wnids)  # the folders' order is that of pretrained classifiers
    assert names[0].startswith("tench")
    assert names[999].startswith("toilet tissue")


def test_some_of_the_folders_are_a_smaller_problem(make_folder: MakeFolder) -> None:
    root = make_folder({"train/n01530575": 2, "train/n01440764": 1, "val/n01440764": 1, "val/n01530575": 1})
    data = ImageNetDataModule(root, 2, image_size=16, workers=0)
    data.setup("fit")
    assert data.wnids == ("n01440764", "n01530575")
    assert data.classes == ("tench, Tinca tinca", "brambling, Fringilla montifringilla")
    assert data.num_classes == 2
    assert [batch.target.tolist() for batch in data.test_dataloader()] == [[0, 1]]


def test_different_folders_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({"train/n01530575": 1, "val/n01440764": 1})
    with pytest.raises(ValueError, match=r"only in .*train: n01530575; only in .*val: n01440764"):
        ImageNetDataModule(root).setup("fit")


def test_folder_arguments_can_be_given_on_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageNetDataModule, "data")
    data = parser.instantiate(parser.parse_args(["--data.image_size=160", "--data.workers=1"])).data
    assert data.image_shape == (3, 160, 160)
    assert (data.root, data.workers) == (Path("data/imagenet"), 1)


def test_real_sample(imagenet_sample_root: Path) -> None:
    data = ImageNetDataModule(imagenet_sample_root / "imagenet_sample", 50, workers=2, seed=0)
    data.setup("fit")
    assert data.classes[:2] == ("tench, Tinca tinca", "brambling, Fringilla montifringilla")
    seen = []
    for batch in data.train_dataloader():
        assert batch.image.shape == (50, 3, 224, 224)
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(100))
