import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from kd_lightning.distillers.metrics import Evaluation, kl_divergence

CLASSES, SAMPLES = 7, 101


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    student, teacher = (
        2 * torch.randn(SAMPLES, CLASSES, generator=generator) + hint * F.one_hot(target, CLASSES) for hint in (1, 3)
    )
    return student, teacher, target


def calibration_error(probabilities: np.ndarray, target: np.ndarray, bins: int = 15) -> float:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == target
    error = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)


def test_figures_against_scikit_learn_and_numpy() -> None:
    student, teacher, target = drawn()
    evaluation = Evaluation(CLASSES, teacher=True, full=True)
    evaluation.update(student, target, teacher)
    p_s, p_t = (F.softmax(z.double(), dim=1).numpy() for z in (student, teacher))
    y = target.numpy()
    expected = {
        "top1": accuracy_score(y, p_s.argmax(1)),
        "top5": top_k_accuracy_score(y, p_s, k=5, labels=range(CLASSES)),
        "loss": log_loss(y, p_s, labels=range(CLASSES)),
        "ece": calibration_error(p_s, y),
        "teacher_top1": accuracy_score(y, p_t.argmax(1)),
        "agreement": accuracy_score(p_t.argmax(1), p_s.argmax(1)),
        "teacher_kl": float((p_t * np.log(p_t / p_s)).sum(1).mean()),
    }
    found = evaluation.compute()
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in found.values()}) == len(found)


def test_uneven_and_empty_batches_give_the_figures_of_one() -> None:
    student, teacher, target = drawn()
    whole, parts = (Evaluation(CLASSES, teacher=True, full=True) for _ in range(2))
    whole.update(student, target, teacher)
    for start, end in ((0, 1), (1, 60), (60, 60), (60, 101)):
        parts.update(student[start:end], target[start:end], teacher[start:end])
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-6)


def test_calibration_error_of_a_small_case() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    evaluation = Evaluation(2, teacher=False, full=True)
    evaluation.update(probabilities.log(), torch.tensor([0, 1, 1, 0]))
    # bins: 0.9 twice with 1 of 2 right, 0.7 right, 0.55 wrong
    assert evaluation.compute()["ece"] == pytest.approx((2 * 0.4 + 0.3 + 0.55) / 4, abs=1e-6)


@pytest.mark.parametrize(("classes", "there"), [(4, False), (5, True), (2, False)])
def test_top5_is_for_5_classes_or_more(classes: int, there: bool) -> None:
    evaluation = Evaluation(classes, teacher=False, full=False)
    evaluation.update(torch.randn(6, classes), torch.zeros(6, dtype=torch.int64))
    assert evaluation.compute().keys() == {"top1", "loss"} | ({"top5"} if there else set())


def test_computing_starts_anew() -> None:
    evaluation = Evaluation(3, teacher=False, full=False)
    right, wrong = 5 * torch.eye(3), 5 * torch.eye(3).roll(1, 1)
    evaluation.update(right, torch.arange(3))
    assert evaluation.compute()["top1"] == 1.0
    evaluation.update(wrong, torch.arange(3))
    assert evaluation.compute()["top1"] == 0.0


def test_half_precision_answers_are_measured_in_float32() -> None:
    student, teacher, target = drawn()
    low, high = (Evaluation(CLASSES, teacher=True, full=True) for _ in range(2))
    low.update(student.bfloat16(), target, teacher.bfloat16())
    high.update(student.bfloat16().float(), target, teacher.bfloat16().float())
    assert low.compute() == high.compute()


def test_kl_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log(), torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    expected = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert kl_divergence(student, teacher).tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    assert kl_divergence(teacher, student)[0].item() == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
