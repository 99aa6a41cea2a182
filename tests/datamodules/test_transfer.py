from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.datamodules import DigitsDataModule, ImageFolderDataModule, TransferSet
from kd_lightning.datamodules.transfer import UNLABELLED, fitted, recoloured
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import FrozenTeacher, Network


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of one grey each, in classes that no digit has."""
    for number in range(12):
        path = tmp_path / f"train/{'xyz'[number % 3]}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 20 * number, dtype=np.uint8)).save(path)
    return tmp_path


def transfer(images: Path, **options: Any) -> TransferSet:
    folder = ImageFolderDataModule(images, 4, test_dir="train", image_size=16, workers=0, drop_last=True)
    return TransferSet(folder, DigitsDataModule(**{"val_fraction": 0.0, **options}), seed=0)


def test_grey_by_hand() -> None:
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]).view(2, 3, 1, 1)
    torch.testing.assert_close(recoloured(colours, 1).flatten(), torch.tensor([0.299, 0.5]))
    assert torch.equal(recoloured(colours, 3), colours)
    assert torch.equal(recoloured(colours[:, :1], 3)[0].flatten(), torch.ones(3))
    with pytest.raises(ValueError, match="with 3 channels cannot be given 2"):
        recoloured(colours, 2)


def test_fitted_has_the_others_normalisation_and_shape() -> None:
    pixels = torch.full((2, 1, 16, 16), 0.7)
    made = fitted((pixels - 0.5) / 0.25, ([0.5], [0.25]), ([0.1, 0.2, 0.3], [1.0, 0.5, 0.25]), (3, 8, 8))
    assert made.shape == (2, 3, 8, 8)
    torch.testing.assert_close(made[0, :, 3, 4], torch.tensor([0.6, 1.0, 1.6]))


def test_images_of_one_labels_of_nobody_everything_else_of_the_other(images: Path) -> None:
    module = transfer(images)
    module.setup("fit")
    assert (module.num_classes, module.image_shape, module.mean) == (10, (1, 8, 8), DigitsDataModule.mean)
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    greys = []
    for batch in batches:
        assert batch.image.shape == (4, 1, 8, 8)
        assert batch.target.tolist() == [UNLABELLED] * 4
        greys += (batch.image.mean((1, 2, 3)) * module.std[0] + module.mean[0]).tolist()
    assert sorted(greys) == pytest.approx([20 * number / 255 for number in range(12)], abs=0.005)
    (test,) = (
        module.data.test_dataloader() if module.data.eval_batch_size >= 450 else [next(iter(module.test_dataloader()))]
    )
    assert set(test.target.tolist()) <= set(range(10))


def test_a_loader_goes_on_where_it_stood(images: Path) -> None:
    module = transfer(images)
    module.setup("fit")
    whole = [batch.index.tolist() for batch in module.train_dataloader()]
    loader = module.train_dataloader()
    loader.load_state_dict({"epoch": 0, "position": 1})
    assert [batch.index.tolist() for batch in loader] == whole[1:]


def test_testing_needs_no_transfer_set(tmp_path: Path) -> None:
    module = transfer(tmp_path / "gone")
    module.setup("test")
    assert len(module.test_dataloader()) > 0
    with pytest.raises(FileNotFoundError, match="no image folder"):
        module.setup("fit")


def test_the_training_set_of_the_data_is_not_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: DigitsDataModule) -> Any:
        raise AssertionError("read")

    monkeypatch.setattr(DigitsDataModule, "read", read)
    module = transfer(images)
    module.setup("fit")
    assert len(list(module.train_dataloader())) == 3
    with pytest.raises(ValueError, match="a transfer set has none"):
        module.train_targets  # noqa: B018


def distil(images: Path, criteria: dict[str, Term], check: bool, **options: Any) -> None:
    network = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
    teacher = FrozenTeacher(network.build(10, 1)) if check else FrozenTeacher(network.build(10, 1), check=False)
    module = OfflineDistiller(network, teacher, criteria, lambda p: torch.optim.SGD(p, 0.1))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, default_root_dir=images, **quiet)
    trainer.fit(module, transfer(images, **options))
    assert trainer.global_step == 3


def test_a_distiller_learns_from_the_teacher_alone(images: Path) -> None:
    kd = Term(SoftTarget())
    distil(images, {"kd": kd}, check=False)
    with pytest.raises(
        ValueError, match=r"^criteria.ce learns from labels, and the transfer set has none: leave it out$"
    ):
        distil(images, {"kd": kd, "ce": Term(CrossEntropy(), teacher=None)}, check=False)
    with pytest.raises(ValueError, match=r"^teacher.check needs validation images with labels"):
        distil(images, {"kd": kd}, check=True)
    with pytest.raises(ValueError, match=r"near chance"):
        distil(images, {"kd": kd}, check=True, validate_on_test=True)
