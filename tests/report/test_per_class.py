"""Class by class, against scikit-learn and by hand."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, recall_score

from kd_lightning.report.per_class import changes, confusion, per_class_accuracy, teacher_student_confusion


def test_confusion_and_accuracy_are_those_of_scikit_learn() -> None:
    target, decision = torch.randint(5, (2, 200), generator=torch.Generator().manual_seed(0))
    expected = confusion_matrix(target.numpy(), decision.numpy(), labels=range(5))
    assert confusion(target, decision, 5).tolist() == expected.tolist()
    recall = recall_score(target.numpy(), decision.numpy(), labels=range(5), average=None)
    assert per_class_accuracy(target, decision, 5).numpy() == pytest.approx(recall)


def test_the_teachers_decisions_are_rows() -> None:
    teacher, student = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    assert teacher_student_confusion(teacher, student, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_gains_and_losses_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 1, 1])
    found = changes(target, torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1]), num_classes=3)
    assert found.gained.tolist() == [1, 0, 0]
    assert found.lost.tolist() == [1, 1, 0]
    assert found.accuracy[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert found.other[:2].tolist() == pytest.approx([2 / 3, 1])
    assert found.accuracy[2].isnan()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"of one length are compared, got \(2,\), \(3,\)"):
        confusion(torch.zeros(2).long(), torch.zeros(3).long(), 3)
    with pytest.raises(ValueError, match=r"classes must be in 0 \.\.\. 2, got 1 to 3"):
        confusion(torch.tensor([0, 1]), torch.tensor([1, 3]), 3)
