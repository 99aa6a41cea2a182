"""Batches of image files are the same however they are made, and every fault names its file."""

import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.decoded_views import CropFirst, Decoded
from kd_lightning.datamodules.encoded import BadImageError
from kd_lightning.datamodules.folder_loader import FolderLoader
from kd_lightning.datamodules.image_files import ImageFiles, list_images
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.named_transform import NamedErasing, NamedTransform
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.timm_transforms import Preprocessing, eval_transform, train_transform

SIZE = 16
WANTED = Preprocessing(SIZE)
TRAIN = train_transform(WANTED, auto_augment="rand-m9-mstd0.5-inc1")
EVAL = eval_transform(WANTED)
Make = Callable[..., FolderLoader]


@pytest.fixture
def files(image_root: Path) -> ImageFiles:
    return list_images(image_root / "train")


@pytest.fixture
def make(files: ImageFiles) -> Iterator[Make]:
    """Makes loaders of the nine training images, and lets their workers go in the end."""
    made = []

    def loader(batch: int = 4, train: bool = True, workers: int = 0, **options: Any) -> FolderLoader:
        names = {name: options.pop(name) for name in ("rank", "world", "repeats", "drop_last") if name in options}
        plan = EpochPlan(torch.arange(len(files)), batch, seed=3, train=train, **names)
        transform = NamedTransform(CropFirst(TRAIN) if train else Decoded(EVAL), plan.seed)
        made.append(
            FolderLoader(
                plan,
                torch.device("cpu"),
                files,
                transform,
                size=SIZE,
                mean=WANTED.mean,
                std=WANTED.std,
                workers=workers,
                **options,
            )
        )
        return made[-1]

    yield loader
    for one in made:
        one.close()


def by_name(batches: list[Batch]) -> dict[tuple[int, int], Tensor]:
    """Image of each (index, number)."""
    images = {}
    for batch in batches:
        assert batch.index is not None
        assert batch.number is not None
        images |= dict(zip(zip(batch.index.tolist(), batch.number.tolist(), strict=True), batch.image, strict=True))
    return images


def same(one: dict[tuple[int, int], Tensor], other: dict[tuple[int, int], Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(image, other[name]) for name, image in one.items())


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(
        (one.image, one.target, one.index, one.number),
        (other.image, other.target, other.index, other.number),
        strict=True,
    )
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def test_batch_is_finished(make: Make, files: ImageFiles) -> None:
    batch = next(iter(make()))
    assert batch.image.shape == (4, 3, SIZE, SIZE)
    assert batch.image.dtype == torch.float32
    assert batch.target.dtype == batch.index.dtype == batch.number.dtype == torch.int64
    assert batch.target.tolist() == files.labels[batch.index].tolist()
    low, high = (torch.tensor([(v - m) / s for m, s in zip(WANTED.mean, WANTED.std, strict=True)]) for v in (0, 1))
    assert bool((batch.image >= low[:, None, None] - 1e-5).all())
    assert bool((batch.image <= high[:, None, None] + 1e-5).all())
    assert float(batch.image.min()) < 0 < float(batch.image.max())


def test_pixels_do_not_depend_on_workers_batches_or_ranks(make: Make) -> None:
    def erasing() -> NamedErasing:
        return NamedErasing(0.5, "pixel", 3)

    # batches of 3 leave no rest, so that all nine samples come in each
    reference = by_name(list(make(3, erasing=erasing())))
    assert len(reference) == 9
    assert same(reference, by_name(list(make(3, workers=2, erasing=erasing()))))
    assert same(reference, by_name(list(make(9, erasing=erasing()))))
    ranks = [batch for rank in range(3) for batch in make(9, rank=rank, world=3, erasing=erasing())]
    assert same(reference, by_name(ranks))


def test_batches_come_in_the_plans_order_with_workers(make: Make) -> None:
    one, two = make(2), make(2, workers=2)
    for epoch in range(2):
        one.plan.set_epoch(epoch)
        two.plan.set_epoch(epoch)
        batches, others = list(one), list(two)
        assert len(batches) == len(others) == len(one) == 4  # the ninth sample alone cannot train
        assert all(equal(a, b) for a, b in zip(batches, others, strict=True))
        assert {number for _, number in by_name(others)} == {epoch}


def test_training_workers_live_on_and_go_when_let_go(make: Make) -> None:
    loader = make(3, workers=1)
    before = set(multiprocessing.active_children())
    list(loader)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 1
    loader.plan.set_epoch(1)
    list(loader)
    assert set(multiprocessing.active_children()) - before == workers
    loader.close()
    assert set(multiprocessing.active_children()) == before
    loader.plan.set_epoch(2)
    assert len(list(loader)) == 3


def test_evaluation_workers_go_after_one_pass(make: Make) -> None:
    before = set(multiprocessing.active_children())
    assert len(list(make(3, train=False, workers=1))) == 3
    assert set(multiprocessing.active_children()) == before


def test_each_sample_comes_once_over_two_ranks(make: Make) -> None:
    for epoch in range(2):
        seen: list[int] = []
        for rank in range(2):
            loader = make(6, rank=rank, world=2)
            loader.plan.set_epoch(epoch)
            for batch in loader:
                assert batch.number is not None
                assert batch.number.tolist() == [epoch] * len(batch)
                seen += batch.index.tolist()
        assert len(seen) == len(set(seen)) == 6  # the rest of 3 would leave a rank a single sample


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_shows_all_and_gives_empty_batches_where_nothing_is_left(make: Make, workers: int) -> None:
    first, second = (list(make(8, train=False, workers=workers, rank=rank, world=2)) for rank in range(2))
    assert [len(batch) for batch in first] == [4, 1]
    assert [len(batch) for batch in second] == [4, 0]
    assert sorted(index for index, _ in by_name(first + second)) == list(range(9))
    empty = second[1]
    assert empty.image.shape == (0, 3, SIZE, SIZE)
    assert (empty.image.dtype, empty.target.dtype, empty.target.shape) == (torch.float32, torch.int64, (0,))


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_epoch_opens_no_earlier_file(make: Make, files: ImageFiles, workers: int) -> None:
    whole, resumed = make(2), make(2, workers=workers)
    whole.plan.set_epoch(5)
    batches = list(whole)
    for batch in batches[:2]:
        for row in batch.index.tolist():
            files.path(row).unlink()
    resumed.load_state_dict({"epoch": 5, "position": 2})
    resumed.plan.set_epoch(5)
    rest = list(resumed)
    assert len(rest) == 2
    assert all(equal(a, b) for a, b in zip(batches[2:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_that_is_left_does_not_disturb_the_next(make: Make, workers: int) -> None:
    loader, reference = make(2, workers=workers), list(make(2))
    next(iter(loader))
    assert all(equal(a, b) for a, b in zip(reference, loader, strict=True))


def test_two_iterations_at_a_time_are_refused(make: Make) -> None:
    loader = make(2)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="iterated anew before this iteration ended"):
        next(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(make: Make, workers: int) -> None:
    before = torch.get_rng_state()
    list(make(3, workers=workers, erasing=NamedErasing(0.5, "pixel", 3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_repeated_samples_come_in_views_of_their_own(make: Make) -> None:
    loader = make(3, repeats=3)
    loader.plan.set_epoch(2)
    for batch in loader:
        assert len(set(batch.index.tolist())) == 1
        assert batch.number.tolist() == [6, 7, 8]
        assert not torch.equal(batch.image[0], batch.image[1])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"<html>"], ids=["empty", "foreign"])
def test_bad_file_is_named(make: Make, files: ImageFiles, workers: int, content: bytes) -> None:
    path = files.path(5)
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=f"^cannot decode image {re.escape(str(path))}: cannot identify") as caught:
        list(make(3, train=False, workers=workers))
    assert "Traceback" not in str(caught.value)


def test_truncated_file_is_named(make: Make, files: ImageFiles) -> None:
    path = files.path(5)
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(BadImageError, match=f"^cannot decode image {re.escape(str(path))}: image file is truncated"):
        list(make(3, train=False, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_file_is_named(make: Make, files: ImageFiles, workers: int) -> None:
    files.path(5).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(files.path(5)))):
        list(make(3, train=False, workers=workers))


def test_mixed_images_and_targets_have_the_same_shares(make: Make, files: ImageFiles) -> None:
    plain, mixed = make(3), make(3, mixing=Mixing(mixup_alpha=1.0))
    shares = []
    for one, other in zip(plain, mixed, strict=True):
        assert other.target.shape == (3, 3)
        assert other.target.dtype == torch.float32
        assert torch.allclose(other.target.sum(1), torch.ones(3))
        assert torch.equal(one.index, other.index)
        for i, partner in enumerate((2, 1, 0)):
            a, b = int(one.target[i]), int(one.target[partner])
            if a == b:
                assert float(other.target[i, a]) == pytest.approx(1)
                continue
            share = float(other.target[i, a])
            assert float(other.target[i, b]) == pytest.approx(1 - share, abs=1e-6)
            expected = share * one.image[i] + (1 - share) * one.image[partner]
            assert torch.allclose(other.image[i], expected, atol=1e-5)
            shares.append(share)
    assert len(set(shares)) == len(shares) > 1  # each sample has a share of its own


def test_share_is_named_by_the_sample_not_by_the_batch(make: Make) -> None:
    def shares(batches: FolderLoader) -> dict[int, Tensor]:
        return {
            int(index): target[label]
            for batch in batches
            for index, target, label in zip(batch.index, batch.target, batches.encoded.labels[batch.index], strict=True)
            if (target > 0).sum() == 2  # of samples mixed with their own class nothing is seen
        }

    three, nine = (shares(make(size, mixing=Mixing(mixup_alpha=1.0))) for size in (3, 9))
    both = three.keys() & nine.keys()
    assert both
    assert all(torch.allclose(three[index], nine[index]) for index in both)


def test_negative_number_of_workers_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="workers must be >= 0, got -1"):
        make(workers=-1)
