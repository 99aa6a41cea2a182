from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.batch import Batch
from kd_lightning.datamodules import (
    CIFAR100DataModule,
    DigitsDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    NoTrainingImages,
    cifar,
)
from kd_lightning.datamodules.in_memory import ImageArrays, InMemoryDataModule
from kd_lightning.datamodules.no_training_images import NamesLoader
from kd_lightning.datamodules.views import View


def set_up(data: ImageDataModule, steps: int = 3, **options: Any) -> NoTrainingImages:
    module = NoTrainingImages(data, steps, **{"global_batch_size": 8, **options})
    module.prepare_data()
    module.setup("fit")
    return module


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"val_fraction": 0.0, **options})


def test_batches_name_images_and_hold_none() -> None:
    loader = set_up(digits()).train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert all(batch.images == {} and len(batch) == 8 for batch in batches)
    named = [batch.index for batch in batches if batch.index is not None]
    assert torch.cat(named).sort().values.tolist() == list(range(24))


def test_an_epoch_is_a_number_of_the_names() -> None:
    loader = set_up(digits()).train_dataloader()
    loader.batch_sampler.set_epoch(4)
    assert {int(number) for batch in loader for number in batch.number} == {4}


def test_a_loader_goes_on_where_it_stood() -> None:
    module = set_up(digits(), seed=1)
    whole = [batch.index.tolist() for batch in module.train_dataloader()]
    loader = module.train_dataloader()
    loader.load_state_dict({"epoch": 0, "position": 2})
    assert [batch.index.tolist() for batch in loader] == whole[2:]


def test_ranks_share_the_names() -> None:
    module = set_up(digits(), seed=1)
    alone = [batch.index for batch in module.train_dataloader()]
    plans = [module.plan("train", train=True) for _ in range(2)]
    for rank, plan in enumerate(plans):
        plan.rank, plan.world = rank, 2
        shared = [batch.index for batch in NamesLoader(plan, torch.device("cpu"))]
        assert all(torch.equal(mine, whole[rank::2]) for mine, whole in zip(shared, alone, strict=True))


def test_everything_else_is_the_data_sets() -> None:
    whole = digits(validate_on_test=True, eval_batch_size=50)
    whole.setup()
    module = set_up(digits(validate_on_test=True, eval_batch_size=50))
    assert (module.num_classes, module.image_shape, module.mean, module.std) == (10, (1, 8, 8), whole.mean, whole.std)
    for mine, its in ((module.val_dataloader(), whole.val_dataloader()), (module.test_dataloader(),) * 2):
        assert isinstance(mine, list) == isinstance(its, list) == False  # noqa: E712
    for mine_batch, its_batch in zip(module.test_dataloader(), whole.test_dataloader(), strict=True):
        assert torch.equal(mine_batch.image, its_batch.image)
        assert torch.equal(mine_batch.target, its_batch.target)


def test_without_validation() -> None:
    assert set_up(digits()).val_dataloader() == []


def test_digits_training_set_is_not_kept() -> None:
    data = digits()
    module = set_up(data)
    with pytest.raises(RuntimeError, match="the training set of DigitsDataModule is not read, and was asked for"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="asks for the classes of the training images, and there are none"):
        module.train_targets  # noqa: B018


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """CIFAR-100 and an image folder whose training images are gone."""
    for number in range(100):
        for path in (tmp_path / f"cifar100/test/c{number:02}/0.png", tmp_path / f"folder/val/c{number:02}/0.png"):
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), number, dtype=np.uint8)).save(path)
    return tmp_path


def test_cifar_without_its_training_images(folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train and test, train is missing"):
        CIFAR100DataModule(str(folders)).setup()
    module = set_up(CIFAR100DataModule(str(folders), eval_batch_size=100))
    assert (module.num_classes, module.image_shape) == (100, (3, 32, 32))
    (batch,) = module.test_dataloader()
    pixels = batch.image * torch.tensor(module.std).view(3, 1, 1) + torch.tensor(module.mean).view(3, 1, 1)
    torch.testing.assert_close(pixels[:, 0, 0, 0] * 255, torch.arange(100.0), atol=1e-3, rtol=0)
    assert batch.target.tolist() == list(range(100))
    assert not (folders / "cifar100/decoded.safetensors").exists()


def test_the_archive_without_its_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Archive:
        base_folder = "archive"

        def __init__(self, root: str, train: bool) -> None:
            asked.append(train)
            self.data, self.targets = np.zeros((3, 32, 32, 3), dtype=np.uint8), [0, 1, 1]
            self.classes = ["a", "b"]

    (tmp_path / "archive").mkdir()
    arrays = cifar.read_cifar(tmp_path, Archive, "none", 2, training=False)  # type: ignore[arg-type]
    assert asked == [False]
    assert arrays.train_images.shape == (0, 32, 32, 3)
    assert arrays.test_labels.tolist() == [0, 1, 1]
    assert arrays.classes == ("a", "b")


def test_an_image_folder_without_its_training_images(folders: Path) -> None:
    data = ImageFolderDataModule(folders / "folder", 10, image_size=8, workers=0, on_bad_image="skip")
    with pytest.raises(FileNotFoundError, match="no image folder at"):
        data.setup("fit")
    module = set_up(data)
    assert module.num_classes == 100
    first = next(iter(module.test_dataloader()))
    assert isinstance(first, Batch)
    assert first.image.shape == (10, 3, 8, 8)


class Whole(InMemoryDataModule):
    mean = std = (0.5,)

    def read(self) -> ImageArrays:
        raise AssertionError("read")


def test_faults() -> None:
    with pytest.raises(ValueError, match=r"^steps_per_epoch must be >= 1, got 0$"):
        NoTrainingImages(digits(), 0)
    with pytest.raises(ValueError, match=r"^val_fraction must be 0 where the training set is not read, got 0.1: "):
        set_up(DigitsDataModule())
    with pytest.raises(ValueError, match=r"^Whole cannot read its test set alone: give it a method read_test_set$"):
        set_up(Whole(4, views={"default": View()}))
