"""Batches out of memory: the same for any batch size, rank and restart, and every sample under its own name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.in_memory import ImageArrays, InMemoryDataModule, InMemoryLoader
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.views import View
from kd_lightning.seeds import below, hashed

CPU = torch.device("cpu")
TRAIN, TEST, SIZE, CLASSES = 46, 11, 6, 4
TWO_VIEWS = {"default": View(crop_padding=2), "peer": View(crop_padding=2, cutout=2)}
MIXINGS = [None, Mixing(mixup_alpha=0.4), Mixing(cutmix_alpha=1.0), Mixing(0.4, 1.0)]
Names = tuple[int, int]


def noise(count: int, seed: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)


ARRAYS = ImageArrays(
    noise(TRAIN, 0), np.arange(TRAIN) % CLASSES, noise(TEST, 1), np.arange(TEST) % CLASSES, ("a", "b", "c", "d")
)


class Noise(InMemoryDataModule):
    """Images of noise, or whatever arrays are given."""

    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.3, 0.4)

    def __init__(self, arrays: ImageArrays = ARRAYS, **options: Any) -> None:
        super().__init__(**{"global_batch_size": 8, "views": TWO_VIEWS, "seed": 3, **options})
        self.arrays, self.reads = arrays, 0

    def read(self) -> ImageArrays:
        self.reads += 1
        return self.arrays


def ready(**options: Any) -> Noise:
    data = Noise(**options)
    data.setup()
    return data


def training(data: Noise, *, rank: int = 0, world: int = 1, size: int = 8, epoch: int = 0) -> InMemoryLoader:
    """The training loader of one of several ranks."""
    rows = data.rows("train")
    plan = EpochPlan(rows, size, seed=3, train=True, repeats=data.repeats, rank=rank, world=world)
    plan.set_epoch(epoch)
    return data.loader("train", plan, CPU)


def names(batch: Batch) -> list[Names]:
    assert batch.index is not None
    assert batch.number is not None
    return list(zip(batch.index.tolist(), batch.number.tolist(), strict=True))


def by_name(*loaders: InMemoryLoader) -> dict[Names, list[Tensor]]:
    """Target and views of each sample."""
    found: dict[Names, list[Tensor]] = {}
    for loader in loaders:
        for batch in loader:
            for row, name in enumerate(names(batch)):
                assert name not in found
                found[name] = [batch.target[row], *(view[row] for view in batch.images.values())]
    return found


def assert_same(first: dict[Names, list[Tensor]], second: dict[Names, list[Tensor]]) -> None:
    assert first.keys() == second.keys()
    for name, parts in first.items():
        assert all(torch.equal(one, other) for one, other in zip(parts, second[name], strict=True)), name


def plain(images: NDArray[np.uint8]) -> Tensor:
    """Normalised by division, ``[N, C, H, W]``."""
    values = (images / 255 - np.array(Noise.mean)) / np.array(Noise.std)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
def test_sample_is_the_same_in_any_batch_on_any_rank(mixing: Mixing | None) -> None:
    data = ready(mixing=mixing)
    whole = by_name(training(data, size=46, epoch=2))
    assert len(whole) == TRAIN
    assert_same(whole, by_name(training(data, size=7, epoch=2)))
    assert_same(whole, by_name(*(training(data, rank=rank, world=2, size=6, epoch=2) for rank in range(2))))


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
@pytest.mark.parametrize("position", range(6))
def test_resumed_loader_gives_what_was_left(position: int, mixing: Mixing | None) -> None:
    data = ready(mixing=mixing)
    uninterrupted, left, resumed = [training(data, epoch=1) for _ in range(3)]
    iterator = iter(left)
    for _ in range(position):
        next(iterator)
    resumed.load_state_dict(left.state_dict())
    wanted, found = list(uninterrupted)[position:], list(resumed)
    assert len(found) == 6 - position
    for one, other in zip(wanted, found, strict=True):
        assert names(one) == names(other)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(one.images[name], other.images[name]) for name in TWO_VIEWS)


def test_epochs_show_all_samples_in_other_views() -> None:
    data = ready()
    first, second = by_name(training(data, epoch=0)), by_name(training(data, epoch=1))
    assert first.keys() == {(row, 0) for row in range(TRAIN)}
    assert second.keys() == {(row, 1) for row in range(TRAIN)}
    changed = [not torch.equal(first[row, 0][1], second[row, 1][1]) for row in range(TRAIN)]
    assert sum(changed) > 0.9 * TRAIN


def test_views_of_two_names_differ_even_where_they_are_made_alike() -> None:
    data = ready(views={"default": View(crop_padding=2), "peer": View(crop_padding=2)})
    differ = [not torch.equal(first, second) for _, first, second in by_name(training(data)).values()]
    assert sum(differ) > 0.9 * TRAIN


def test_repeated_augmentation_gives_views_of_their_own() -> None:
    data = ready(repeats=3)
    found = by_name(training(data))
    rows = {row for row, _ in found}
    assert len(found) == TRAIN
    assert len(rows) == 16  # ceil(46 / 3)
    assert {number for _, number in found} == {0, 1, 2}
    pairs = [(row, 1) for row in rows if (row, 1) in found]
    assert sum(not torch.equal(found[row, 0][1], found[row, 1][1]) for row, _ in pairs) > 0.9 * len(pairs)


def test_index_is_the_row_in_the_full_training_set() -> None:
    data = ready(val_fraction=0.3, views={"default": View(0, False)})
    found = by_name(data.train_dataloader()) | by_name(data.val_dataloader())  # type: ignore[arg-type]
    assert {row for row, _ in found} == set(range(TRAIN))
    assert len(by_name(data.val_dataloader())) == 14  # type: ignore[arg-type]
    images = plain(ARRAYS.train_images)
    for (row, _), (target, image) in found.items():
        assert int(target) == row % CLASSES
        torch.testing.assert_close(image, images[row], rtol=0, atol=2e-6)


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
def test_evaluation_shows_the_images_as_they_are(mixing: Mixing | None) -> None:
    batches = list(ready(eval_batch_size=4, mixing=mixing).test_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert [name for batch in batches for name in names(batch)] == [(row, 0) for row in range(TEST)]
    assert torch.cat([batch.target for batch in batches]).tolist() == [row % CLASSES for row in range(TEST)]
    for name in TWO_VIEWS:
        images = torch.cat([batch.images[name] for batch in batches])
        torch.testing.assert_close(images, plain(ARRAYS.test_images), rtol=0, atol=2e-6)


def test_ranks_with_nothing_left_to_evaluate_get_an_empty_batch() -> None:
    data = ready()
    plan = EpochPlan(data.rows("test"), 5, seed=3, train=False, rank=3, world=5)
    batches = list(data.loader("test", plan, CPU))
    assert [len(batch) for batch in batches] == [1, 1, 0]
    assert batches[-1].image.shape == (0, 3, SIZE, SIZE)
    assert batches[-1].image.dtype == torch.float32
    assert batches[-1].target.shape == (0,)
    assert batches[-1].index is not None
    assert batches[-1].index.dtype == torch.int64


@pytest.mark.parametrize("mixing", MIXINGS, ids=str)
def test_batch_types(mixing: Mixing | None) -> None:
    batch = next(iter(ready(mixing=mixing).train_dataloader()))
    assert isinstance(batch, Batch)
    assert set(batch.images) == set(TWO_VIEWS)
    for image in batch.images.values():
        assert image.dtype == torch.float32
        assert image.is_contiguous(memory_format=torch.channels_last)
    if mixing is None:
        assert batch.target.dtype == torch.int64
    else:
        assert batch.target.dtype == torch.float32
        assert batch.target.shape == (8, CLASSES)
        torch.testing.assert_close(batch.target.sum(1), torch.ones(8))


def test_targets_are_probabilities_even_where_few_samples_are_mixed() -> None:
    data = ready(mixing=Mixing(mixup_alpha=1.0, prob=0.0))
    found = by_name(training(data))
    for (row, _), (target, *_) in found.items():
        assert target.tolist() == [float(row % CLASSES == label) for label in range(CLASSES)]


def test_mixup_of_named_partners_by_hand() -> None:
    data = ready(mixing=Mixing(mixup_alpha=1.0), val_fraction=0.5)
    loader, rows = training(data, epoch=2), data.rows("train").tolist()
    batch = next(iter(loader))
    mixed_with_others = 0
    for place, (row, number) in enumerate(names(batch)):
        key = hashed(3, "mixing", row, number)
        partner = rows[int(below(len(rows), key, "partner"))]
        unmixed = loader.make_views(torch.tensor([row, partner]), torch.tensor([number, number]))
        assert data.mixing is not None
        lam = float(data.mixing.draw(key[None]).lam)
        for name in TWO_VIEWS:
            wanted = lam * unmixed[name][0] + (1 - lam) * unmixed[name][1]
            torch.testing.assert_close(batch.images[name][place], wanted)
        target = torch.zeros(CLASSES)
        target[row % CLASSES] += lam
        target[partner % CLASSES] += 1 - lam
        torch.testing.assert_close(batch.target[place], target)
        mixed_with_others += partner != row
    assert mixed_with_others > 0


def test_partners_are_any_row_of_the_training_split_and_no_other() -> None:
    black = ARRAYS._replace(train_images=np.zeros_like(ARRAYS.train_images))
    data = ready(arrays=black, val_fraction=0.5, mixing=Mixing(mixup_alpha=1.0), views={"default": View(0, False)})
    rows = data.rows("train")
    for row in data.rows("val").tolist():
        black.train_images[row] = 255  # they would show in the mixed images
    data = ready(arrays=black, val_fraction=0.5, mixing=Mixing(mixup_alpha=1.0), views={"default": View(0, False)})
    shade = plain(np.zeros((1, 1, 1, 3), dtype=np.uint8)).flatten()
    seen = set()
    for epoch in range(40):
        for batch in training(data, epoch=epoch):
            torch.testing.assert_close(batch.image.mean((0, 2, 3)), shade)
            key = hashed(3, "mixing", batch.index, batch.number)  # type: ignore[arg-type]
            seen |= set(rows[below(len(rows), key, "partner")].tolist())
    assert seen == set(rows.tolist())


def test_cutmix_pastes_the_partners_view() -> None:
    data = ready(mixing=Mixing(cutmix_alpha=1.0), views={"default": View(0), "peer": View(0)})
    loader = training(data)
    batch = next(iter(loader))
    assert batch.index is not None
    assert batch.number is not None
    key = hashed(3, "mixing", batch.index, batch.number)
    partners = data.rows("train")[below(TRAIN, key, "partner")]
    own, theirs = loader.make_views(batch.index, batch.number), loader.make_views(partners, batch.number)
    share = 1 - batch.target.gather(1, batch.index[:, None] % CLASSES).flatten()
    others = (partners % CLASSES) != (batch.index % CLASSES)
    assert others.any()
    for name, image in batch.images.items():
        kept, pasted = (image == own[name]).all(1), (image == theirs[name]).all(1)
        assert torch.all(kept | pasted)
        torch.testing.assert_close((~kept).float().mean((1, 2))[others], share[others])


def test_loaders_share_one_store_on_a_device() -> None:
    data, meta = ready(val_fraction=0.2), torch.device("meta")
    train, val = data.train_dataloader(), data.val_dataloader()
    assert train.store is val.store  # type: ignore[attr-defined, union-attr]
    assert data.store("train", meta) is data.store("val", meta)
    assert data.store("train", meta).packed.is_meta
    assert data.store("test", CPU) is not data.store("train", CPU)


def test_set_up_reads_once() -> None:
    data = Noise()
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.reads == 1
    assert data.num_classes == CLASSES
    assert data.image_shape == (3, SIZE, SIZE)


def changed(**arrays: Any) -> ImageArrays:
    return ARRAYS._replace(**arrays)


def labels_with(label: int, row: int) -> NDArray[np.int64]:
    labels = ARRAYS.train_labels.copy()
    labels[row] = label
    return labels


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            changed(train_labels=labels_with(4, row=17)),
            r"^the label of row 17 of the training set must be in 0 … 3, got 4 \(1 such labels\)$",
        ),
        (changed(train_labels=labels_with(-1, row=2)), r"^the label of row 2 of the training .* got -1 "),
        (changed(train_labels=labels_with(-100, row=0)), r"^the label of row 0 of the training .* got -100 "),
        (changed(test_labels=np.full(TEST, 9)), r"^the label of row 0 of the test .* got 9 \(11 such labels\)$"),
        (changed(test_labels=np.zeros(3, int)), r"^the test set has 11 images, but 3 labels$"),
        (changed(train_images=noise(0, 0), train_labels=np.zeros(0, int)), r"^the training set is empty$"),
        (changed(test_images=noise(0, 0), test_labels=np.zeros(0, int)), r"^the test set is empty$"),
        (
            changed(train_images=noise(TRAIN, 0, channels=1)),
            r"^mean and std must have one number for each of the 1 channels, got \(0.5, 0.4, 0.3\) and ",
        ),
        (changed(train_images=ARRAYS.train_images[..., 0]), r"^images must be uint8 \[N, H, W, C\] .* \[46, 6, 6\]$"),
    ],
)
def test_faults_in_the_arrays(arrays: ImageArrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(arrays=arrays)


def test_default_view_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^views must have a view named 'default', got \['a', 'b'\]$"):
        Noise(views={"b": View(), "a": View()})


@pytest.mark.parametrize(
    "use",
    [lambda data: data.train_dataloader(), lambda data: data.image_shape, lambda data: data.rows("test")],
    ids=["train_dataloader", "image_shape", "rows"],
)
def test_data_is_needed(use: Callable[[Noise], object]) -> None:
    with pytest.raises(RuntimeError, match=r"^Noise has no data yet: call prepare_data\(\) and setup\(\) first$"):
        use(Noise())


class Watcher(pl.LightningModule):
    """Trains one number, and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[Names], float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((names(batch), float(batch.image.double().sum())))
        return self.weight * batch.image.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: Path | None = None) -> Watcher:
    watcher = Watcher()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        default_root_dir=folder,
    )
    trainer.fit(watcher, datamodule=Noise(val_fraction=0.2), ckpt_path=resume)
    return watcher


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_trainer_sets_epochs_and_resumes_inside_them(tmp_path: Path, stop: int) -> None:
    whole = fit(tmp_path, 12).seen  # 5 batches an epoch
    assert [seen[0][0][1] for seen in whole] == [0] * 5 + [1] * 5 + [2] * 2
    assert len({row for seen, _ in whole[:5] for row, _ in seen}) == 37
    rest = fit(tmp_path / "resumed", 12, resume=tmp_path / f"step={stop}.ckpt").seen
    assert rest == whole[stop:]
