"""Dark knowledge in bits, against scipy and scikit-learn and by hand."""

from itertools import pairwise
from math import log2

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.feature_selection import mutual_info_classif

from kd_lightning.report.dark_knowledge import class_similarity, clustered_order, entropy, information


def test_the_entropy_is_that_of_scipy() -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 4.0):
        expected = stats.entropy((logits.double() / temperature).softmax(dim=1).numpy(), base=2, axis=1)
        assert entropy(logits, temperature).numpy() == pytest.approx(expected)


def test_entropy_of_a_sure_and_of_an_even_answer() -> None:
    assert entropy(torch.tensor([[1000.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), 1.0).tolist() == [0.0, 2.0]


def test_information_by_hand() -> None:
    half, quarter = log2(0.5), log2(0.25)  # as logits in nats: log p
    logits = torch.tensor([[half, half, -99], [half, -99, half], [quarter, half, quarter]]) / log2(torch.e)
    found = information(logits, torch.tensor([0, 0, 1]), temperature=1.0)
    assert found.label == pytest.approx(log2(3) - 2 / 3)
    assert found.entropy == pytest.approx((1 + 1 + 1.5) / 3)
    assert found.effective_classes == pytest.approx(2 ** (3.5 / 3))
    # The mean of the first two is (1/2, 1/4, 1/4), of 1.5 bits, half a bit more than each of them.
    assert found.beyond == pytest.approx(2 / 3 * 0.5, abs=1e-6)


def test_one_hot_targets_tell_of_scikit_learns_mutual_information_beyond_the_label() -> None:
    generator = np.random.default_rng(0)
    target, decision = generator.integers(0, 3, 300), generator.integers(0, 4, 300)
    logits = 1000.0 * torch.nn.functional.one_hot(torch.from_numpy(decision), 4)
    found = information(logits, torch.from_numpy(target), temperature=1.0)
    # H(decision | label) = H(decision) - I(decision; label)
    shared = mutual_info_classif(decision[:, None], target, discrete_features=True)[0] / np.log(2)
    assert found.beyond == pytest.approx(stats.entropy(np.bincount(decision), base=2) - shared)
    assert found.entropy == 0.0


def test_the_same_target_for_all_images_of_a_class_tells_nothing_beyond() -> None:
    found = information(torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5), temperature=1.0)
    assert found.label == pytest.approx(2.0)
    assert found.beyond == pytest.approx(0.0, abs=1e-12)


def test_class_similarity_is_the_mean_soft_target() -> None:
    logits = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    found = class_similarity(logits, torch.tensor([0, 0, 1]), temperature=2.0)
    sigmoid = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sigmoid()
    first = float(sigmoid[:2].mean())
    assert found.tolist() == [
        pytest.approx([first, 1 - first]),
        pytest.approx([1 - sigmoid[2].item(), sigmoid[2].item()]),
    ]


def test_a_class_without_images_has_a_row_of_nan() -> None:
    found = class_similarity(torch.zeros(2, 3), torch.tensor([0, 2]), temperature=1.0)
    assert found.isnan().all(dim=1).tolist() == [False, True, False]


def test_clusters_that_are_shuffled_are_found_again() -> None:
    blocks = torch.block_diag(torch.full((2, 2), 0.2), torch.full((3, 3), 0.3), torch.full((2, 2), 0.1))
    shuffled = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    order = clustered_order((blocks + 0.01)[shuffled][:, shuffled])
    assert sorted(order) == list(range(7))
    group = [[0, 0, 1, 1, 1, 2, 2][number] for number in shuffled[order]]
    assert sum(a != b for a, b in pairwise(group)) == 2


def test_a_chain_is_put_in_its_order() -> None:
    place = torch.tensor([2.0, 0.0, 4.0, 1.0, 3.0])
    order = clustered_order(torch.exp(-(place[:, None] - place).abs()))
    assert place[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


def test_classes_without_images_come_last() -> None:
    similarity = class_similarity(torch.eye(5)[[0, 1, 3, 4]], torch.tensor([0, 1, 3, 4]), temperature=1.0)
    assert clustered_order(similarity)[-1] == 2
    assert clustered_order(torch.full((2, 2), torch.nan)) == [0, 1]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        entropy(torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match=r"logits must be \[M, C\], got \(3,\)"):
        entropy(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"target must have shape \(2,\), got \(3,\)"):
        class_similarity(torch.zeros(2, 3), torch.zeros(3).long(), 1.0)
    with pytest.raises(ValueError, match="one image at least"):
        information(torch.zeros(0, 3), torch.zeros(0).long(), 1.0)
