import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import EnsembleTeacher, FrozenTeacher, MovingAverageTeacher, Network, Views, save_weights
from kd_lightning.models.ensemble import combined, weights_by_label

VIEWS = Views((3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Net(nn.Module):
    """Two stages and a head; it remembers what it was shown."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, classes)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        logits: Tensor = self.fc(self.stem(x).mean((2, 3)))
        return logits


def batch(target: Tensor | None = None) -> Batch:
    return Batch({"default": torch.randn(4, 3, 8, 8)}, torch.tensor([0, 1, 2, 3]) if target is None else target)


def pair(taps: tuple[str, ...] = (), **given: Any) -> tuple[EnsembleTeacher, Net, Net]:
    a, b = Net(4), Net(6)
    teacher = EnsembleTeacher({"a": FrozenTeacher(a, check=False), "b": FrozenTeacher(b, check=False)}, **given)
    teacher.setup(5, VIEWS, taps)
    return teacher, a, b


def test_equal_weights_by_default() -> None:
    teacher, a, b = pair()
    given = batch()
    torch.testing.assert_close(teacher(given).logits, (a(given.image) + b(given.image)) / 2)


def test_given_weights_are_divided_by_their_sum() -> None:
    teacher, a, b = pair(weights={"b": 3.0, "a": 1.0})
    given = batch()
    torch.testing.assert_close(teacher(given).logits, 0.25 * a(given.image) + 0.75 * b(given.image))


def test_the_mean_of_probabilities() -> None:
    teacher, a, b = pair(mean="probabilities", weights={"a": 0.2, "b": 0.8})
    given = batch()
    expected = 0.2 * a(given.image).softmax(1) + 0.8 * b(given.image).softmax(1)
    torch.testing.assert_close(teacher(given).logits.softmax(1), expected)
    torch.testing.assert_close(teacher(given).logits.exp().sum(1), torch.ones(4))


def test_a_weight_of_zero_leaves_a_teacher_out() -> None:
    logits = torch.tensor([[[1.0, 2.0]], [[7.0, -9.0]]])
    for mean, expected in {"logits": logits[0], "probabilities": logits[0].log_softmax(1)}.items():
        torch.testing.assert_close(combined(logits, torch.tensor([[1.0], [0.0]]), mean), expected)  # type: ignore[arg-type]


def test_weights_by_cross_entropy_are_shares_of_the_probability_of_the_label() -> None:
    # Two teachers, one sample, two classes: p(label) is 0.8 and 0.2.
    logits = torch.tensor([[[math.log(0.8), math.log(0.2)]], [[math.log(0.2), math.log(0.8)]]])
    weights = weights_by_label(logits, torch.tensor([0]), "cross_entropy")
    torch.testing.assert_close(weights, torch.tensor([[0.8], [0.2]]))


def test_weights_by_confidence_as_the_paper_has_them() -> None:
    # CE of 0, log 2 and log 4: exp(CE) is 1, 2 and 4, so the weights are (1 - 1/7, 1 - 2/7, 1 - 4/7) / 2.
    logits = torch.tensor([[1e-9, 1.0], [0.5, 0.5], [0.75, 0.25]]).log()[:, None]
    weights = weights_by_label(logits, torch.tensor([1]), "confidence")
    torch.testing.assert_close(weights, torch.tensor([[6.0], [5.0], [3.0]]) / 14, rtol=1e-5, atol=1e-6)


def test_weights_by_mixed_labels() -> None:
    logits, hard = torch.randn(3, 4, 5), torch.tensor([0, 4, 2, 2])
    mixed = 0.5 * F.one_hot(hard, 5).float() + 0.1
    weights = weights_by_label(logits, mixed, "cross_entropy")
    ce = -(mixed * logits.log_softmax(2)).sum(2)
    torch.testing.assert_close(weights, torch.softmax(-ce, 0))
    torch.testing.assert_close(
        weights_by_label(logits, F.one_hot(hard, 5).float(), "confidence"), weights_by_label(logits, hard, "confidence")
    )


def test_weights_by_the_label_need_one() -> None:
    teacher, _, _ = pair(weights="confidence")
    given = batch(torch.tensor([0, 1, -100, 3]))
    with pytest.raises(ValueError, match="weights confidence need labels, and a sample has none"):
        teacher(given)
    teacher.unlabelled(given)


def test_what_is_measured_does_not_look_at_the_labels() -> None:
    teacher, a, b = pair(weights="cross_entropy")
    given = batch()
    other = given._replace(target=torch.tensor([4, 4, 4, 4]))
    assert not torch.equal(teacher(given).logits, teacher(other).logits)
    assert torch.equal(teacher.unlabelled(given).logits, teacher.unlabelled(other).logits)
    torch.testing.assert_close(teacher.unlabelled(given).logits, (a(given.image) + b(given.image)) / 2)


def test_each_is_shown_its_own_size_and_normalisation(tmp_path: Path) -> None:
    save_weights(Network("cifar_resnet8").build(5), tmp_path / "w.safetensors")
    recipe = Network(
        "cifar_resnet8", weights=str(tmp_path / "w.safetensors"), image_size=16, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    plain = Net(4)
    teacher = EnsembleTeacher(
        {"a": FrozenTeacher(plain, check=False, fold=False), "b": FrozenTeacher(recipe, check=False)}
    )
    teacher.setup(5, VIEWS, ["b/logits"])
    given = batch()
    logits, taps = teacher(given)
    assert torch.equal(plain.seen[-1], given.image)
    shown = F.interpolate(given.image * 0.25 + 0.5, (16, 16), mode="bilinear", antialias=True)
    member = Network("cifar_resnet8", weights=recipe.weights).build(5).eval()
    torch.testing.assert_close(taps["b/logits"], member(shown))
    torch.testing.assert_close(logits, (plain(given.image) + member(shown)) / 2)


def test_taps_of_members() -> None:
    teacher, a, b = pair(("logits", "a/stem", "b/stem", "b/fc:in", "a/logits"))
    given = batch()
    taps = teacher(given).taps
    torch.testing.assert_close(taps["a/stem"], a.stem(given.image))
    torch.testing.assert_close(taps["b/fc:in"], b.stem(given.image).mean((2, 3)))
    torch.testing.assert_close(taps["a/logits"], a(given.image))
    plan = teacher.plan()
    assert plan.shapes == {
        "logits": (2, 5), "a/stem": (2, 4, 8, 8), "b/stem": (2, 6, 8, 8), "b/fc:in": (2, 6), "a/logits": (2, 5)
    }  # fmt: skip
    assert plan.names["b/stem"] == "b/stem"


def test_nothing_has_a_gradient() -> None:
    teacher, _, _ = pair(("a/stem",))
    logits, taps = teacher(batch())
    tap = taps["a/stem"]
    assert isinstance(tap, Tensor)
    assert not logits.requires_grad
    assert not tap.requires_grad


def test_there_is_no_classifier_and_norms_are_of_members() -> None:
    teacher, a, _ = pair(("a/fc:in",))
    with pytest.raises(ValueError, match="a EnsembleTeacher has no single classifier"):
        teacher.classifier()
    with pytest.raises(ValueError, match="a EnsembleTeacher has no batch normalisation"):
        teacher.norms("logits")
    ((mean, std),) = teacher.norms("a/fc:in")
    norm = a.stem[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(mean, norm.bias)
    assert torch.equal(std, norm.weight)


def test_every_member_is_examined_also_of_an_ensemble_inside() -> None:
    frozen = [FrozenTeacher(Net(4), check=False) for _ in range(3)]
    inner = EnsembleTeacher({"x": frozen[0], "y": frozen[1]})
    assert EnsembleTeacher({"in": inner, "z": frozen[2]}).members() == {
        "in/x": frozen[0], "in/y": frozen[1], "z": frozen[2]
    }  # fmt: skip


def test_a_member_that_follows_the_student_is_told_and_kept() -> None:
    average = MovingAverageTeacher(0.5)
    teacher = EnsembleTeacher({"a": FrozenTeacher(Net(4), check=False), "own": average})
    student = Net(3)
    teacher.follow(student)
    teacher.setup(5, VIEWS, [])
    before = student.fc.bias.detach().clone()
    student.fc.bias.data += 2
    teacher.advance(student, 0, 10)
    state = teacher.state()
    assert state is not None
    assert set(state) == {"own"}
    torch.testing.assert_close(state["own"]["fc.bias"], before + 1)
    kept = {"own": {key: value.clone() for key, value in state["own"].items()}}
    teacher.advance(student, 1, 10)
    teacher.restore(kept)
    torch.testing.assert_close(teacher.state(), kept)
    with pytest.raises(ValueError, match="holds no moving average"):
        teacher.restore(None)


def test_frozen_members_have_no_state() -> None:
    teacher, _, _ = pair()
    assert teacher.state() is None
    with pytest.raises(ValueError, match="a FrozenTeacher does not change"):
        teacher.restore({"a": {}})


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a"], {}, r"teachers must be at least two, got \['a'\]"),
        (["a", "b/c"], {}, "teachers must have names without a slash, got 'b/c'"),
        (["a", "b"], {"mean": "votes"}, "mean must be logits or probabilities, got 'votes'"),
        (["a", "b"], {"weights": "loss"}, "weights must be numbers by name, cross_entropy or confidence, got 'loss'"),
        (["a", "b"], {"weights": {"a": 1.0}}, r"weights must be given for \['a', 'b'\], got \['a'\]"),
        (["a", "b"], {"weights": {"a": 1.0, "b": -1.0}}, r"weights must be >= 0 and finite, got -1\.0"),
        (["a", "b"], {"weights": {"a": 0.0, "b": 0.0}}, "weights must not all be 0"),
    ],
)
def test_faults(names: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnsembleTeacher({name: FrozenTeacher(Net(4)) for name in names}, **options)


@pytest.mark.parametrize("tap", ["stages", "c/stem", "fc:in"])
def test_a_tap_that_is_nobodys(tap: str) -> None:
    with pytest.raises(ValueError, match=f"teacher tap '{tap}': of an ensemble it is logits, or MEMBER/TAP .* of a, b"):
        pair((tap,))


def test_a_member_that_does_not_fit_is_named() -> None:
    teacher = EnsembleTeacher({"a": FrozenTeacher(Net(4)), "b": FrozenTeacher(Net(4, classes=7))})
    with pytest.raises(ValueError, match=r"teachers\.b: the teacher has 7 classes, the data 5"):
        teacher.setup(5, VIEWS, [])
