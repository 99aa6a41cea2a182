import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.distillers import DML, KDCL, ONE, Codistillation, Collaboration
from kd_lightning.distillers.collaboration import (
    Learner,
    decoupled,
    error_products,
    least_squares_weights,
    min_logit,
)
from kd_lightning.models import Outputs

A, B, C = (Learner(name, name) for name in "abc")
ONE_1 = Learner("one_1", "one", "branches.0")
TARGET = torch.tensor([0, 2, 1, 2])


def answers(peers: int = 3, seed: int = 0) -> dict[str, Outputs]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(peers, 4, 3, generator=generator, requires_grad=True)
    return {name: Outputs(each * 1.0, {}) for name, each in zip("abc", logits, strict=False)}


def taught(collaboration: Collaboration, given: dict[str, Outputs], target: Tensor = TARGET) -> dict[str, Tensor]:
    learners = [Learner(name, name) for name in given]
    for learner in learners:
        collaboration.teachers_of(learner, learners)
    return {name: said.logits for name, said in collaboration.teach(given, target, {}).items()}


def test_every_other_peer_teaches_in_dml() -> None:
    assert DML().teachers_of(B, [A, B, C]) == ["a", "c"]
    assert DML().teachers_of(ONE_1, [A, Learner("one", "one"), ONE_1]) == []
    given = answers()
    for name, logits in taught(DML(), given).items():
        assert torch.equal(logits, given[name].logits)
        assert not logits.requires_grad


def test_no_gradient_passes_through_what_is_taught() -> None:
    taps: dict[str, Tensor | list[Tensor]] = {
        "x": torch.ones(1, requires_grad=True),
        "y": [torch.ones(1, requires_grad=True)],
    }
    said = decoupled(Outputs(torch.ones(1, 2, requires_grad=True), taps))
    assert not said.logits.requires_grad
    assert isinstance(said.taps["x"], Tensor)
    assert not said.taps["x"].requires_grad
    assert not said.taps["y"][0].requires_grad


def test_min_logit_by_hand() -> None:
    logits = torch.tensor([[[3.0, 1.0, 0.0]], [[2.0, 5.0, -1.0]]])  # relative to class 0: [0, -2, -3] and [0, 3, -3]
    assert min_logit(logits, torch.tensor([0])).tolist() == [[0.0, -2.0, -3.0]]
    mixed = torch.tensor([[0.5, 0.5, 0.0]])  # 2 and 3.5 are subtracted
    assert min_logit(logits, mixed).tolist() == [[-1.5, -1.0, -4.5]]


def test_min_logit_never_gives_the_target_less_than_a_peer_does() -> None:
    given = answers()
    (ensemble,) = taught(KDCL("min_logit"), given).values()
    p_target = ensemble.softmax(1).gather(1, TARGET[:, None])
    for outputs in given.values():
        assert (p_target >= outputs.logits.softmax(1).gather(1, TARGET[:, None]) - 1e-6).all()


def test_naive_is_the_mean_of_the_logits() -> None:
    given = answers()
    said = taught(KDCL("naive"), given)
    assert list(said) == ["ensemble"]
    torch.testing.assert_close(said["ensemble"], sum(o.logits for o in given.values()) / 3)
    assert not said["ensemble"].requires_grad


def test_least_squares_weights_by_hand() -> None:
    # Uncorrelated errors: inversely to their squares.
    weights = least_squares_weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.2], dtype=torch.float64), rtol=1e-3, atol=1e-3)
    equal = least_squares_weights(torch.ones(3, 3, dtype=torch.float64))
    torch.testing.assert_close(equal, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert least_squares_weights(torch.zeros(5, 5, dtype=torch.float64)).tolist() == pytest.approx([0.2] * 5)


def test_least_squares_weights_have_the_least_error_on_the_batch() -> None:
    given = answers()
    logits = torch.stack([outputs.logits.detach() for outputs in given.values()])
    weights = least_squares_weights(error_products(logits, TARGET)).float()
    assert weights.sum() == pytest.approx(1)

    def error(w: Tensor) -> float:
        mixed = torch.einsum("k,knc->nc", w, logits.softmax(2))
        return (mixed - F.one_hot(TARGET, 3)).square().sum().item()

    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        step = torch.randn(3, generator=generator) * 0.1
        assert error(weights) <= error(weights + step - step.mean()) + 1e-3 * error(weights)
    (ensemble,) = taught(KDCL("linear"), given).values()
    torch.testing.assert_close(ensemble, torch.einsum("k,knc->nc", weights, logits))


def test_a_better_peer_weighs_more() -> None:
    right = 5.0 * F.one_hot(TARGET, 3).float()
    products = error_products(torch.stack([right, right.roll(1, dims=1)]), TARGET)
    good, bad = least_squares_weights(products).tolist()
    assert good > 0.9 > bad


def test_the_gated_ensemble_teaches_its_branches() -> None:
    one = Learner("one", "one")
    assert ONE().teachers_of(ONE_1, [one, ONE_1]) == ["one"]
    assert ONE().teachers_of(one, [one, ONE_1]) == []
    with pytest.raises(ValueError, match="ONE needs branches, and peer 'a' has none"):
        ONE().teachers_of(A, [A, one, ONE_1])


@pytest.mark.parametrize("collaboration", [DML(), KDCL(), Codistillation()])
def test_one_peer_is_too_few(collaboration: Collaboration) -> None:
    with pytest.raises(ValueError, match=r"needs at least 2 peers, got \['a'\]"):
        collaboration.teachers_of(A, [A])


def test_faulty_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="ensemble must be naive, min_logit or linear, got 'mean'"):
        KDCL("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        Codistillation(every=0)
    with pytest.raises(ValueError, match="exchange must be weights or predictions, got 'x'"):
        Codistillation(exchange="x")  # type: ignore[arg-type]
