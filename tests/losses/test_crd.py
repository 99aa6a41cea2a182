import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import CRD, InBatchCRD
from kd_lightning.losses.crd import ByClass, contrast, in_batch_contrast, negatives_of, similarities
from kd_lightning.seeds import run_seed

SAMPLES, DIM = 40, 4
TRAIN_TARGETS = torch.arange(SAMPLES) * 7 % 5  # not sorted; 8 samples of each of 5 classes
EINSUM, MATMUL = 3, 30  # numbers of negatives for which (1 + K) x 4 is below and above 40: each way of `similarities`
LN3 = math.log(3)


def batch(samples: int = 6, dim: int = DIM, step: int = 0) -> dict[str, Tensor]:
    """What a step is given: features of both, and which samples they are."""
    generator = torch.Generator().manual_seed(step)
    student, teacher = torch.randn(2, samples, dim, generator=generator, dtype=torch.float64)
    index = torch.randperm(SAMPLES, generator=generator)[:samples]
    number = torch.full((samples,), step)
    given = {"student": student, "teacher": teacher, "target": TRAIN_TARGETS[index], "index": index, "number": number}
    return given | {"train_targets": TRAIN_TARGETS}


def crd(negatives: int = EINSUM, **options: Any) -> CRD:
    """A loss that was not built: what it is given are the embeddings."""
    return CRD(DIM, negatives, **({"temperature": 0.5} | options))


def built(negatives: int = EINSUM, student: int = DIM, teacher: int = DIM) -> CRD:
    loss = crd(negatives).double()
    loss.build([(2, student)], [(2, teacher)])
    return loss.double()


def kept(loss: CRD) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loss.get_extra_state().items()}


# Negatives


def draw(index: Tensor, number: Tensor | None = None, count: int = 500, seed: int = 3) -> Tensor:
    return negatives_of(
        index, torch.zeros_like(index) if number is None else number, ByClass.of(TRAIN_TARGETS), count, seed
    )


def test_negatives_are_of_other_classes() -> None:
    rows = draw(torch.arange(SAMPLES))
    assert rows.shape == (SAMPLES, 500)
    assert rows.dtype == torch.int64
    assert (TRAIN_TARGETS[rows] != TRAIN_TARGETS[:, None]).all()


def test_each_sample_of_another_class_is_drawn() -> None:
    rows = draw(torch.arange(SAMPLES))
    for index in range(SAMPLES):
        others = (TRAIN_TARGETS[index] != TRAIN_TARGETS).nonzero().flatten()
        assert rows[index].unique().tolist() == others.tolist()


def test_negatives_are_uniform_over_the_other_samples() -> None:
    targets = torch.tensor([2, 0, 0, 1, 2, 0, 1, 0, 1, 0, 3, 1])  # classes of 5, 4, 2 and 1
    index, numbers, count = torch.arange(12), 20, 100
    rows = torch.cat(
        [negatives_of(index, torch.full((12,), n), ByClass.of(targets), count, 5) for n in range(numbers)], dim=1
    )
    chi_square, freedom = 0.0, 0
    for i in range(12):
        others = (targets != targets[i]).nonzero().flatten()
        observed = torch.bincount(rows[i], minlength=12)[others].double()
        expected = numbers * count / len(others)
        one = ((observed - expected) ** 2 / expected).sum().item()
        assert one < len(others) - 1 + 6 * math.sqrt(2 * (len(others) - 1))  # a chance of 1e-5 or so
        chi_square, freedom = chi_square + one, freedom + len(others) - 1
    # Mean and deviation of a chi-square distribution; too small would mean that they are not independent.
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_pairs_of_negatives_are_independent() -> None:
    # Two lanes of a sample agree as often as chance has it: 1 in 32.
    rows = draw(torch.arange(SAMPLES), count=1000)
    pairs = SAMPLES * 500
    agree = (rows[:, ::2] == rows[:, 1::2]).sum().item()
    assert abs(agree - pairs / 32) < 4 * math.sqrt(pairs / 32)


def test_negatives_are_named_by_seed_index_and_number() -> None:
    index, number = torch.tensor([4, 4, 9]), torch.tensor([0, 1, 0])
    rows = draw(index, number)
    torch.testing.assert_close(draw(index, number), rows)
    assert (rows[0] != rows[1]).float().mean() > 0.9
    assert (draw(index, number, seed=4) != rows).float().mean() > 0.9
    # Of two samples of one class, which choose among the same ones.
    same_class = (TRAIN_TARGETS[4] == TRAIN_TARGETS).nonzero().flatten()
    assert (draw(same_class[:1])[0] != draw(same_class[1:2])[0]).float().mean() > 0.9


def test_negatives_do_not_depend_on_the_rest_of_the_batch() -> None:
    index, number = torch.randperm(SAMPLES), torch.randint(100, (SAMPLES,))
    rows, order = draw(index, number), torch.randperm(SAMPLES)
    torch.testing.assert_close(draw(index[order], number[order]), rows[order])
    torch.testing.assert_close(draw(index[5:6], number[5:6]), rows[5:6])


def test_more_negatives_begin_with_the_fewer() -> None:
    index = torch.arange(4)
    torch.testing.assert_close(draw(index, count=100)[:, :7], draw(index, count=7))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30).filter(lambda classes: len(set(classes)) > 1))
def test_negatives_are_of_other_classes_in_any_data_set(classes: list[int]) -> None:
    targets = torch.tensor(classes)
    rows = negatives_of(torch.arange(len(targets)), torch.zeros(len(targets)).long(), ByClass.of(targets), 50, 0)
    assert (targets[rows] != targets[:, None]).all()


def test_a_data_set_of_one_class_is_refused() -> None:
    one = batch() | {"target": torch.zeros(6).long(), "train_targets": torch.zeros(SAMPLES).long()}
    with pytest.raises(ValueError, match="CRD needs negatives of other classes, but the training set has one class"):
        crd()(**one)


def test_the_seed_of_the_run_names_the_negatives_and_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    values, banks = [], []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        torch.manual_seed(len(values))  # torch's own generator has no say in it
        loss = crd()
        values.append(loss(**batch()).item())
        assert loss.bank is not None
        banks.append(loss.bank.clone())
    assert values[0] == values[1] != values[2]
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


# Similarities


@pytest.mark.parametrize("count", [1, 9, 10, 50])  # 10 x 4 is not below 40
def test_both_ways_of_similarities_are_the_dot_products(count: int) -> None:
    anchors, bank, rows = torch.randn(5, 4).double(), torch.randn(40, 4).double(), torch.randint(40, (5, count))
    expected = torch.stack(
        [torch.stack([torch.dot(anchors[n], bank[rows[n, k]]) for k in range(count)]) for n in range(5)]
    )
    torch.testing.assert_close(similarities(anchors, bank, rows), expected)


def test_both_ways_of_similarities_agree_in_value_and_gradient() -> None:
    # The rows of the small bank are the first of the large one, for which the other way is taken.
    large, rows = torch.randn(400, 4).double(), torch.randint(40, (5, 20))
    results = []
    for bank in (large[:40], large):
        anchors = batch(5)["student"].requires_grad_()
        value = similarities(anchors, bank, rows)
        (value * torch.arange(100).view(5, 20)).sum().backward()
        results.append((value, anchors.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("count", [5, 20])
def test_gradcheck_of_similarities(count: int) -> None:
    bank, rows = torch.randn(40, 4).double(), torch.randint(40, (3, count))
    anchors = torch.randn(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: similarities(a, bank, rows), anchors)


# The formula


def naive_contrast(scores: Tensor, samples: int, z: float) -> float:
    total, negatives = 0.0, scores.shape[1] - 1
    for row in scores.tolist():
        for k, score in enumerate(row):
            x = math.exp(score) / z
            h = x / (x + negatives / samples + 1e-7)
            # The authors write K / M for the rest, without the 1e-7.
            total -= math.log(h) if k == 0 else math.log(negatives / samples / (x + negatives / samples + 1e-7))
    return total / len(scores)


def test_contrast_by_hand() -> None:
    # K / M = 1/2. x = 3/2 and 1/2: h = 1.5 / 2 = 3/4 of the positive, 1 - h = 0.5 / 1 of the negative:
    # -ln 0.75 - ln 0.5 = 0.2876821 + 0.6931472.
    value = contrast(torch.tensor([[LN3, 0.0]]), 2, torch.tensor(2.0))
    assert value.item() == pytest.approx(0.9808293, abs=1e-5)


def test_contrast_is_a_mean_over_the_batch_and_a_sum_over_the_negatives() -> None:
    # K / M = 2/4. First sample: 0.2876821 + 2 x 0.6931472 = 1.6739764; second: x = 1/2 everywhere, 3 x 0.6931472.
    scores = torch.tensor([[LN3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert contrast(scores, 4, torch.tensor(2.0)).item() == pytest.approx((1.6739764 + 2.0794415) / 2, abs=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 1000), st.floats(0.1, 1e5), st.floats(0, 14))
def test_contrast_against_the_definition(samples: int, negatives: int, total: int, z: float, scale: float) -> None:
    scores = scale * (2 * torch.rand(samples, 1 + negatives).double() - 1)
    value = contrast(scores, total, torch.tensor(z))
    assert value.item() == pytest.approx(naive_contrast(scores, total, z), rel=1e-6)
    assert value > 0


def test_gradcheck_of_contrast() -> None:
    z = torch.tensor(7.0).double()
    assert torch.autograd.gradcheck(lambda s: contrast(s, 20, z), torch.randn(3, 6).double().requires_grad_())


def test_contrast_falls_with_the_positive_and_rises_with_the_negatives() -> None:
    scores = torch.randn(3, 6).double().requires_grad_()
    contrast(scores, 20, torch.tensor(7.0)).backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, 1:] > 0).all()


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_the_loss_against_a_naive_loop(negatives: int) -> None:
    given, loss = batch(), crd(negatives).eval()  # in training the bank would take in the batch at once
    value = loss(**given)
    bank = loss.bank
    assert bank is not None
    rows = negatives_of(given["index"], given["number"], ByClass.of(TRAIN_TARGETS), negatives, run_seed())
    expected = 0.0
    for side, other in (("student", 1), ("teacher", 0)):
        scores = torch.zeros(6, 1 + negatives).double()
        for n in range(6):
            anchor = given[side][n] / given[side][n].norm()
            for k, row in enumerate([given["index"][n], *rows[n]]):
                scores[n, k] = torch.dot(anchor, bank[other, row]) / 0.5
        z = scores.exp().mean().item() * SAMPLES
        expected += naive_contrast(scores, SAMPLES, z)
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_three_steps_against_torchdistill(negatives: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = losses.CRDLoss("n", "e", "n", DIM, SAMPLES, negatives, SAMPLES, temperature=0.5, momentum=0.25).double()
    ours, bank = crd(negatives, momentum=0.25), torch.randn(2, SAMPLES, DIM).double()
    ours.set_extra_state({"bank": bank})
    theirs.memory_v1.copy_(bank[0])
    theirs.memory_v2.copy_(bank[1])
    for step in range(3):
        given = batch(step=step)
        rows = negatives_of(given["index"], given["number"], ByClass.of(TRAIN_TARGETS), negatives, run_seed())
        drawn = {"pos_idx": given["index"], "contrast_idx": torch.cat([given["index"][:, None], rows], dim=1)}
        gradients = []
        for name in ("ours", "theirs"):
            s, t = (given[side].clone().requires_grad_() for side in ("student", "teacher"))
            if name == "ours":
                value = ours(**(given | {"student": s, "teacher": t}))
            else:  # it is given unit vectors
                unit_s, unit_t = (x / x.norm(dim=1, keepdim=True) for x in (s, t))
                student = {"n": {"output": unit_s}, "e": {"input": drawn}}
                (value,) = theirs(student, {"n": {"output": unit_t}})
            value.backward()
            gradients.append((value.detach(), s.grad, t.grad))
        torch.testing.assert_close(gradients[0], gradients[1])
        torch.testing.assert_close(kept(ours)["bank"], torch.stack([theirs.memory_v1, theirs.memory_v2]))
    torch.testing.assert_close(kept(ours)["constants"], theirs.params[2:4])


# Banks and constants


def test_a_new_bank_is_uniform_with_rows_of_mean_square_1() -> None:
    loss = CRD(16, 3).eval()
    given = batch(4, dim=16) | {"train_targets": torch.arange(2000) % 5}
    loss(**given)
    assert loss.bank is not None
    assert loss.bank.shape == (2, 2000, 16)
    assert loss.bank.abs().max() <= (3 / 16) ** 0.5
    assert loss.bank.square().sum(dim=2).mean().item() == pytest.approx(1, abs=0.02)
    assert abs(loss.bank.mean().item()) < 0.01
    assert not torch.equal(loss.bank[0], loss.bank[1])


def test_the_bank_by_hand() -> None:
    loss = CRD(2, 3, momentum=0.5)
    bank = torch.tensor([[[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4])
    bank[:, 2] = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    loss.set_extra_state({"bank": bank})
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 1.0], [0.0, -2.0]])
    targets, index = torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2])
    loss(student, teacher, targets[index], index, torch.tensor([0, 1]), targets)
    # The last of the two is taken, of length 1: 0.5 (0.6, 0.8) + 0.5 (0, 1) = (0.3, 0.9), over its length 0.9486833;
    # 0.5 (1, 0) + 0.5 (0, -1) = (0.5, -0.5), over 0.7071068.
    expected = bank.clone()
    expected[:, 2] = torch.tensor([[0.3162278, 0.9486833], [0.7071068, -0.7071068]])
    torch.testing.assert_close(kept(loss)["bank"], expected)


def test_momentum_is_the_share_of_the_old_row() -> None:
    loss = CRD(2, 3, momentum=0.75)
    loss.set_extra_state({"bank": torch.tensor([[[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4])})
    targets, index = torch.tensor([0, 1, 0, 1]), torch.tensor([1])
    loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), targets[index], index, torch.tensor([0]), targets)
    # 0.75 (1, 0) + 0.25 (0, 1), over 0.7905694; the teacher's agrees.
    expected = torch.tensor([[0.9486833, 0.3162278], [0.0, 1.0]])
    torch.testing.assert_close(kept(loss)["bank"][:, 1], expected)


def test_a_step_uses_the_bank_as_it_was_before_it() -> None:
    loss, fixed, given = crd(), crd().eval(), batch()
    agreeing = given | {"teacher": given["student"]}
    first = loss(**agreeing)
    assert first.item() == fixed(**agreeing).item() == fixed(**agreeing).item()
    # The second time the batch meets its own embeddings there, and the positives are nearer.
    assert loss(**agreeing).item() < first.item() - 0.1


def crd_after_nothing() -> CRD:
    """A loss with a bank that nothing was taken into."""
    loss = crd().eval()
    loss(**batch())
    return loss


def test_the_rows_of_others_stay() -> None:
    loss, before, given = crd(), kept(crd_after_nothing())["bank"], batch()
    loss(**given)
    after = kept(loss)["bank"]
    changed = (after != before).any(dim=2)
    assert changed.sum().item() == 2 * 6
    assert changed[:, given["index"]].all()
    torch.testing.assert_close(after[:, given["index"]].norm(dim=2), torch.ones(2, 6).double())


def test_evaluation_leaves_bank_and_constants_alone() -> None:
    loss = crd()
    loss(**batch())
    before = kept(loss)
    loss.eval()
    loss(**batch(step=1))
    assert all(torch.equal(before[name], value) for name, value in kept(loss).items())
    loss.train()
    loss(**batch(step=1))
    assert not torch.equal(before["bank"], kept(loss)["bank"])


def test_the_constants_are_set_at_the_first_training_call_only() -> None:
    loss = crd()
    loss.eval()(**batch(step=5))
    assert "constants" not in kept(loss)
    loss.train()(**batch())
    first = kept(loss)["constants"]
    direct = crd()
    direct(**batch())
    assert torch.equal(first, kept(direct)["constants"])
    loss(**batch(step=1))
    assert torch.equal(first, kept(loss)["constants"])


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_the_constants_are_the_mean_over_the_scores_times_the_samples(negatives: int) -> None:
    loss, given = crd(negatives), batch()
    loss(**given)
    bank = kept(crd_after_nothing())["bank"]
    index = given["index"]
    rows = torch.cat(
        [index[:, None], negatives_of(index, given["number"], ByClass.of(TRAIN_TARGETS), negatives, run_seed())], 1
    )
    for constant, side, other in zip(kept(loss)["constants"], ("student", "teacher"), (1, 0), strict=True):
        anchors = given[side] / given[side].norm(dim=1, keepdim=True)
        x = ((anchors[:, None] * bank[other][rows]).sum(dim=2) / 0.5).exp()
        torch.testing.assert_close(constant, x.mean() * SAMPLES)


def test_neither_bank_nor_constants_ask_for_a_gradient() -> None:
    loss = built()
    given = batch()
    given["student"].requires_grad_()
    loss(**given).backward()
    for value in kept(loss).values():
        assert not value.requires_grad
    assert not list(loss.buffers())  # DDP would broadcast them at every step
    assert {name for name, _ in loss.named_parameters()} == {
        f"{side}_embedding.1.{what}" for side in ("student", "teacher") for what in ("weight", "bias")
    }


def test_the_default_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    crd()(**batch())
    assert torch.equal(state, torch.get_rng_state())


def trained(loss: CRD, steps: range) -> list[float]:
    optimizer, values = torch.optim.SGD(loss.parameters(), lr=0.1), []
    for step in steps:
        value = loss(**batch(step=step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_a_loaded_state_continues_bit_for_bit(negatives: int) -> None:
    whole, first, second = built(negatives), built(negatives), built(negatives)
    first.load_state_dict(whole.state_dict())  # no bank yet; the same embeddings
    expected = trained(whole, range(5))
    assert trained(first, range(2)) == expected[:2]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert trained(second, range(2, 5)) == expected[2:]
    for name, value in kept(whole).items():
        assert torch.equal(value, kept(second)[name])


def test_a_loaded_state_forgets_what_was_seen_since() -> None:
    loss = crd()
    loss(**batch())
    state = copy.deepcopy(loss.state_dict())
    loss(**batch(step=1))
    loss.load_state_dict(state)
    assert all(torch.equal(state["_extra_state"][name], value) for name, value in kept(loss).items())


def test_a_loaded_state_is_not_shared() -> None:
    one, other = crd(), crd()
    one(**batch())
    other.load_state_dict(one.state_dict())
    before = kept(one)["bank"]
    other(**batch(step=1))
    kept(other)
    assert torch.equal(before, kept(one)["bank"])


def test_a_loss_that_saw_nothing_has_no_state() -> None:
    assert crd().get_extra_state() == {}
    loss = crd()
    loss(**batch())
    loss.load_state_dict(crd().state_dict())
    assert loss.bank is None
    assert loss.constants is None


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_it_can_be_copied_after_a_step(negatives: int) -> None:
    loss = built(negatives)
    student = batch()["student"].requires_grad_()
    loss(**(batch() | {"student": student})).backward()
    other = copy.deepcopy(loss)
    assert trained(other, range(1, 3)) == trained(loss, range(1, 3))
    assert all(torch.equal(value, kept(other)[name]) for name, value in kept(loss).items())


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_steps_one_after_the_other(negatives: int) -> None:
    loss = built(negatives)
    for step in range(3):
        loss(**batch(step=step)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_two_forwards_before_a_backward(negatives: int) -> None:
    loss, apart = built(negatives), built(negatives)
    apart.load_state_dict(loss.state_dict())
    (loss(**batch()) + loss(**batch(step=1))).backward()
    for step in range(2):
        apart(**batch(step=step)).backward()
    for ours, theirs in zip(loss.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_a_backward_after_the_next_forward(negatives: int) -> None:
    loss, apart = built(negatives), built(negatives)
    apart.load_state_dict(loss.state_dict())
    first = loss(**batch())
    loss(**batch(step=1))
    loss.state_dict()  # takes in the second
    first.backward()
    apart(**batch()).backward()
    for ours, theirs in zip(loss.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bank_of_another_data_set_is_refused() -> None:
    loss = crd()
    loss(**batch())
    fewer = batch() | {"train_targets": TRAIN_TARGETS[:39], "index": torch.arange(6)}
    with pytest.raises(ValueError, match=r"bank is of \(40, 4\) \(samples, dim\), but the run has \(39, 4\)"):
        loss(**fewer)


def test_a_bank_of_another_dim_is_refused() -> None:
    loss, other = crd(), CRD(5, 3)
    loss(**batch())
    other.load_state_dict(loss.state_dict())
    with pytest.raises(ValueError, match=r"bank is of \(40, 4\) \(samples, dim\), but the run has \(40, 5\)"):
        other(**batch(dim=5))


def test_mixed_targets_are_refused() -> None:
    mixed = batch() | {"target": torch.rand(6, 5)}
    with pytest.raises(ValueError, match="CRD cannot take mixed targets: its bank has a row for a sample; switch mix"):
        crd()(**mixed)


def test_the_memory_is_told() -> None:
    # 2 x 50,000 x 128 x 4 bytes = 51.2 MB
    expected = "memory bank: 2 x 50,000 x 128 float32, 51 MB on the device and in each checkpoint"
    assert CRD().notice(50_000) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CRD(dim=0), "dim and negatives must be >= 1, got 0 and 16384"),
        (lambda: CRD(negatives=0), "dim and negatives must be >= 1, got 128 and 0"),
        (lambda: CRD(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: CRD(momentum=-0.1), r"momentum must be in \[0, 1\), got -0.1"),
        (lambda: CRD(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: InBatchCRD(dim=0), "dim must be >= 1, got 0"),
        (lambda: InBatchCRD(temperature=-1.0), "temperature must be > 0, got -1.0"),
        (lambda: CRD().build([(2, 4), (2, 4)], [(2, 4)]), "CRD needs one tap of each network, got 2"),
        (lambda: InBatchCRD().build([(2, 4)], []), "CRD needs one tap of each network, got 0"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_defaults_and_what_is_asked_for() -> None:
    loss = CRD()
    assert (loss.dim, loss.negatives, loss.temperature, loss.momentum) == (128, 16384, 0.07, 0.5)
    assert CRD.needs == {"index", "number", "train_targets"}
    assert InBatchCRD.needs == frozenset()
    for kind in (CRD, InBatchCRD):
        assert kind.student_tap == kind.teacher_tap == "embedding"


# CRD as a loss


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_the_gradient_reaches_student_and_embeddings(negatives: int) -> None:
    loss = built(negatives, student=7, teacher=9)
    student, teacher = torch.randn(6, 7).double().requires_grad_(), torch.randn(6, 9).double()
    loss(**(batch() | {"student": student, "teacher": teacher})).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert teacher.grad is None


def test_maps_are_flattened() -> None:
    loss = crd().double()
    loss.build([(2, 3, 2, 2)], [(2, 5)])
    loss.double()
    maps = torch.randn(6, 3, 2, 2).double()
    assert loss(**(batch() | {"student": maps, "teacher": torch.randn(6, 5).double()})).isfinite()
    assert loss.bank is not None
    assert loss.bank.shape == (2, SAMPLES, DIM)


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_twenty_steps_lower_it(negatives: int) -> None:
    loss, student = built(negatives), batch()["student"].requires_grad_()
    optimizer, values = torch.optim.Adam([student, *loss.parameters()], lr=0.05), []
    for _ in range(21):
        value = loss(**(batch() | {"student": student}))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_twenty_steps_lower_it_against_a_fixed_bank() -> None:
    loss, student = crd(), batch()["student"].requires_grad_()
    loss(**batch())
    loss.eval()
    optimizer, values = torch.optim.Adam([student], lr=0.1), []
    for _ in range(21):
        value = loss(**(batch() | {"student": student}))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.98 * values[0]
    assert values == sorted(values, reverse=True)


def test_equality_is_not_zero() -> None:
    # Each sample is told from the noise, which is never certain.
    given = batch()
    same = given | {"teacher": given["student"]}
    assert crd()(**same) > 1


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_the_order_of_the_batch_does_not_matter(negatives: int) -> None:
    order, results = torch.tensor([3, 0, 5, 1, 4, 2]), []
    for rows in (torch.arange(6), order):
        loss, given = crd(negatives), batch()
        value = loss(**{name: x[rows] if len(x) == 6 else x for name, x in given.items()})
        results.append((value, kept(loss)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_are_taken_in_float32(dtype: torch.dtype) -> None:
    given = batch()
    low = {side: given[side].to(dtype).requires_grad_(side == "student") for side in ("student", "teacher")}
    loss = crd(temperature=0.07)
    value = loss(**(given | low))
    value.backward()
    assert value.dtype == torch.float32
    assert loss.bank is not None
    assert loss.bank.dtype == torch.float32
    expected = crd(temperature=0.07)(**(given | {side: x.detach().float() for side, x in low.items()}))
    torch.testing.assert_close(value, expected)
    assert low["student"].grad is not None
    assert low["student"].grad.isfinite().all()


@pytest.mark.parametrize("negatives", [EINSUM, MATMUL])
def test_autocast_stays_near_float32(negatives: int) -> None:
    given = batch()
    single = given | {side: given[side].float() for side in ("student", "teacher")}
    loss = crd(negatives)
    loss.build([(2, DIM)], [(2, DIM)])
    plain = copy.deepcopy(loss)
    for step in range(2):
        student = (single["student"] + step).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(**(single | {"student": student}))
        value.backward()
        assert value.dtype == torch.float32
        expected = plain(**(single | {"student": student.detach()}))
        assert value.item() == pytest.approx(expected.item(), rel=0.02)
        assert student.grad is not None
        assert student.grad.isfinite().all()
    torch.testing.assert_close(kept(loss), kept(plain), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_stay_finite(samples: int, value: float) -> None:
    loss, student = crd(), torch.full((samples, DIM), value).requires_grad_()
    loss(**(batch(samples) | {"student": student, "teacher": torch.full((samples, DIM), value)})).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    state = kept(loss)
    assert state["bank"].isfinite().all()
    assert loss(**(batch(samples) | {"student": student, "teacher": student.detach()})).isfinite()


def test_two_classes_suffice() -> None:
    targets = torch.arange(SAMPLES) % 2
    student = batch()["student"].requires_grad_()
    value = crd()(**(batch() | {"student": student, "target": targets[:6], "train_targets": targets}))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_negative_may_be_alone() -> None:
    # The one sample of another class is every negative.
    targets = torch.zeros(SAMPLES).long()
    targets[7] = 1
    rows = negatives_of(torch.tensor([3]), torch.tensor([0]), ByClass.of(targets), 9, 0)
    assert rows.tolist() == [[7] * 9]


# Within the batch


def test_in_batch_by_hand() -> None:
    # Scores are the identity: -log softmax is ln(1 + 1/e) = 0.3132617 for both samples and directions.
    eye, labels = torch.eye(2), torch.tensor([0, 1])
    assert in_batch_contrast(eye, eye, labels, 1.0).item() == pytest.approx(0.3132617, abs=1e-6)
    # At T = 1/2: ln(1 + e^-2) = 0.1269280.
    assert in_batch_contrast(eye, eye, labels, 0.5).item() == pytest.approx(0.1269280, abs=1e-6)


def test_in_batch_others_of_the_same_class_are_left_out() -> None:
    # Rows 1 and 3 are of one class: [1, 0, -] gives ln(1 + 1/e) = 0.3132617, the middle one [0, 1, 0] gives
    # ln(1 + 2/e) = 0.5514447; the mean is 0.3926560, the columns agree.
    vectors, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([4, 2, 4])
    assert in_batch_contrast(vectors, vectors, labels, 1.0).item() == pytest.approx(0.3926560, abs=1e-6)


def test_in_batch_against_a_naive_loop() -> None:
    student, teacher = (x / x.norm(dim=1, keepdim=True) for x in torch.randn(2, 8, 5).double())
    labels, total = torch.tensor([0, 1, 0, 2, 1, 0, 3, 3]), 0.0
    for anchors, others in ((student, teacher), (teacher, student)):
        for i in range(8):
            scores = [math.exp(torch.dot(anchors[i], others[j]).item() / 0.07) for j in range(8)]
            among = [j for j in range(8) if j == i or labels[j] != labels[i]]
            total -= math.log(scores[i] / sum(scores[j] for j in among))
    assert in_batch_contrast(student, teacher, labels, 0.07).item() == pytest.approx(total / 16, rel=1e-10)


def test_gradcheck_in_batch() -> None:
    labels = torch.tensor([0, 1, 0, 2])
    student, teacher = torch.randn(2, 4, 3).double()
    assert torch.autograd.gradcheck(
        lambda s, t: in_batch_contrast(s, t, labels, 0.5), (student.requires_grad_(), teacher.requires_grad_())
    )


def test_in_batch_sides_can_be_swapped() -> None:
    given = batch()
    loss = InBatchCRD(DIM)
    value = loss(given["student"], given["teacher"], given["target"])
    torch.testing.assert_close(loss(given["teacher"], given["student"], given["target"]), value)


def test_in_batch_the_order_does_not_matter() -> None:
    given, order, loss = batch(), torch.randperm(6), InBatchCRD(DIM)
    value = loss(given["student"], given["teacher"], given["target"])
    moved = loss(given["student"][order], given["teacher"][order], given["target"][order])
    torch.testing.assert_close(moved, value)


def test_in_batch_the_length_of_the_features_does_not_matter() -> None:
    given, loss = batch(), InBatchCRD(DIM)
    value = loss(given["student"], given["teacher"], given["target"])
    torch.testing.assert_close(loss(9 * given["student"], 0.1 * given["teacher"], given["target"]), value)


def test_in_batch_takes_a_mixed_target_by_its_largest_class() -> None:
    given, loss = batch(), InBatchCRD(DIM)
    mixed = torch.full((6, 5), 0.1)
    mixed[torch.arange(6), given["target"]] = 0.6
    value = loss(given["student"], given["teacher"], mixed)
    assert value.item() == loss(given["student"], given["teacher"], given["target"]).item()


def test_in_batch_equality_is_not_zero() -> None:
    student = batch()["student"]
    assert InBatchCRD(DIM, temperature=0.5)(student, student, torch.arange(6)) > 0.1


@pytest.mark.parametrize(("samples", "labels"), [(1, [0]), (3, [2, 2, 2])])
def test_in_batch_without_another_class_is_zero(samples: int, labels: list[int]) -> None:
    student = torch.randn(samples, DIM).requires_grad_()
    value = InBatchCRD(DIM)(student, torch.randn(samples, DIM), torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_in_batch_constant_features_are_told_apart_by_chance(value: float) -> None:
    student = torch.full((3, DIM), value).requires_grad_()
    loss = InBatchCRD(DIM)(student, torch.full((3, DIM), value), torch.arange(3))
    loss.backward()
    assert loss.item() == pytest.approx(LN3, abs=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_batch_low_precision_features_are_taken_in_float32(dtype: torch.dtype) -> None:
    given, loss = batch(), InBatchCRD(DIM)
    student, teacher = given["student"].to(dtype).requires_grad_(), given["teacher"].to(dtype)
    value = loss(student, teacher, given["target"])
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.detach().float(), teacher.float(), given["target"]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_in_batch_autocast_stays_near_float32() -> None:
    given, loss = batch(), InBatchCRD(DIM, temperature=0.5)
    loss.build([(2, DIM)], [(2, DIM)])
    student, teacher = given["student"].float().requires_grad_(), given["teacher"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, given["target"])
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student.detach(), teacher, given["target"]).item(), rel=0.02)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_in_batch_the_gradient_reaches_student_and_embeddings_and_lowers_it() -> None:
    loss = InBatchCRD(DIM)
    loss.build([(2, 7)], [(2, 3, 2, 2)])
    student, teacher, labels = torch.randn(6, 7).requires_grad_(), torch.randn(6, 3, 2, 2), torch.arange(6) % 4
    optimizer, values = torch.optim.SGD([student, *loss.parameters()], lr=0.05), []
    for _ in range(21):
        value = loss(student, teacher, labels)
        optimizer.zero_grad()
        value.backward()
        assert student.grad is not None
        assert all(p.grad is not None for p in loss.parameters())
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    assert teacher.grad is None
    assert all(isinstance(make[1], nn.Linear) for make in (loss.student_embedding, loss.teacher_embedding))


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(1, 4), st.floats(0.05, 5.0))
def test_in_batch_is_at_least_zero_and_at_most_what_chance_and_temperature_allow(
    samples: int, classes: int, temperature: float
) -> None:
    student, teacher = torch.randn(2, samples, DIM).double()
    value = InBatchCRD(DIM, temperature)(student, teacher, torch.arange(samples) % classes).item()
    # Scores differ by 2 / T at most.
    assert -1e-12 <= value <= math.log(samples) + 2 / temperature
