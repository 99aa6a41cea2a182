import pytest
import torch

from kd_lightning.batch import Batch
from kd_lightning.export import Agreement, compare, top1


def test_two_answers_are_compared() -> None:
    expected = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 1.0]])
    agreement = compare(torch.tensor([[1.0, 2.5], [3.0, -4.0], [2.0, 1.0]]), expected)
    assert agreement == Agreement(images=3, same=2, difference=2.0, scale=4.0)
    assert str(agreement) == "2 of 3 decisions the same, logits differ by 2 at most"


def test_rounding_passes() -> None:
    agreement = Agreement(images=3, same=3, difference=1e-5, scale=10.0)
    assert agreement.required("a.onnx") is agreement


@pytest.mark.parametrize(
    "agreement",
    [
        Agreement(images=3, same=2, difference=1e-6, scale=1.0),
        Agreement(images=3, same=3, difference=0.5, scale=1.0),
        Agreement(images=3, same=3, difference=float("nan"), scale=1.0),
    ],
)
def test_another_decision_other_logits_and_no_number_do_not(agreement: Agreement) -> None:
    with pytest.raises(ValueError, match=r"a\.onnx does not answer as the network does: . of 3 decisions"):
        agreement.required("a.onnx")


def test_top1_over_batches_of_different_sizes() -> None:
    logits = torch.eye(3)
    batches = [Batch({"default": logits}, torch.tensor([0, 1, 0])), Batch({"default": logits[:1]}, torch.tensor([0]))]
    assert top1(lambda images: images, batches) == 3 / 4
