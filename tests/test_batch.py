"""What a batch is, and what passes for one."""

import pickle

import pytest
import torch
from torch.utils.data import default_collate

from kd_lightning.batch import Batch, as_batch, check_labels

IMAGES, TARGET = torch.rand(3, 1, 2, 2), torch.tensor([0, 2, 1])


def test_image_is_the_default_view() -> None:
    assert Batch({"other": IMAGES + 1, "default": IMAGES}, TARGET).image is IMAGES


def test_length_is_the_number_of_samples() -> None:
    assert len(Batch({"default": IMAGES}, TARGET)) == 3
    assert len(Batch({"default": IMAGES[:0]}, TARGET[:0])) == 0


def test_names_are_optional() -> None:
    batch = Batch({"default": IMAGES}, TARGET)
    assert batch.index is None
    assert batch.number is None


def test_batch_passes_as_itself() -> None:
    batch = Batch({"default": IMAGES}, TARGET, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert as_batch(batch) is batch


@pytest.mark.parametrize("kind", [tuple, list])
def test_pair_of_another_loader(kind: type) -> None:
    batch = as_batch(kind((IMAGES, TARGET)))
    assert isinstance(batch, Batch)
    assert batch.image is IMAGES
    assert batch.target is TARGET
    assert batch.index is None


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (IMAGES, "Tensor"),
        ({"image": IMAGES}, "dict"),
        ((IMAGES, TARGET, TARGET), "tuple of length 3"),
        ([IMAGES, 3], "list of length 2"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_batch(wrong: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^batch must be a kd_lightning Batch or .* of tensors, got {got}$"):
        as_batch(wrong)


def test_torch_collates_and_pickles_it() -> None:
    samples = [
        Batch({"default": image}, label, row, row * 0) for image, label, row in zip(IMAGES, TARGET, TARGET, strict=True)
    ]
    batch = default_collate(samples)
    assert isinstance(batch, Batch)
    assert torch.equal(batch.image, IMAGES)
    again = pickle.loads(pickle.dumps(batch))
    assert isinstance(again, Batch)
    assert torch.equal(again.target, TARGET)


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_label_out_of_range_is_named(label: int) -> None:
    with pytest.raises(ValueError, match=rf"^the label of sample 1 of batch 7 must be in 0 … 2, got {label}$"):
        check_labels(torch.tensor([2, label, 9]), 3, 7)


def test_labels_in_range_and_probabilities_pass() -> None:
    check_labels(TARGET, 3, 0)
    check_labels(torch.full((2, 3), -1.0), 3, 0)
