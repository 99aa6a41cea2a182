from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import AttentionProbabilities
from kd_lightning.losses.attention_probabilities import attention_kl

Rows = Literal["cls", "all"]
NO_TARGET = torch.zeros(0, dtype=torch.int64)
QUARTERS, HALVES = [0.75, 0.25], [0.5, 0.5]


def rows(samples: int = 3, heads: int = 2, tokens: int = 5) -> Tensor:
    return (2 * torch.randn(samples, heads, tokens, tokens, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize(("kind", "expected"), [("cls", 0.1308120), ("all", 0.2746530)])
def test_by_hand(kind: Rows, expected: float) -> None:
    # First row: KL((3/4, 1/4) || (1/2, 1/2)) = 0.75 ln 1.5 - 0.25 ln 2 = 0.1308120;
    # second row, the other way round: ln 2 - 0.5 ln 3 = 0.1438410.
    teacher, student = torch.tensor([[[QUARTERS, HALVES]]]), torch.tensor([[[HALVES, QUARTERS]]])
    assert attention_kl(student, teacher, kind).item() == pytest.approx(expected, abs=1e-6)


def test_heads_are_summed_and_samples_averaged() -> None:
    # One sample has 0.1308120 in both heads, the other agrees: (2 * 0.1308120 + 0) / 2.
    student = torch.tensor([HALVES, HALVES]).expand(2, 2, 2, 2)
    teacher = torch.stack([torch.tensor([QUARTERS, HALVES]).expand(2, 2, 2), student[1]])
    assert attention_kl(student, teacher).item() == pytest.approx(0.1308120, abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.1308120), (2.0, 0.0363409)])
def test_other_numbers_of_heads_by_hand(temperature: float, expected: float) -> None:
    # The student's heads (3/4, 1/4) and (1/4, 3/4) have the product 3/16 in both places: (1/2, 1/2) together.
    student = torch.tensor([[[QUARTERS], [QUARTERS[::-1]]]]).expand(1, 2, 2, 2)
    # The teacher's one head at T = 2 is (sqrt 3, 1) / (1 + sqrt 3) = (0.6339746, 0.3660254), so the divergence is
    # 0.6339746 ln 1.2679492 + 0.3660254 ln 0.7320508 = 0.1505061 - 0.1141652.
    teacher = torch.tensor([[[QUARTERS]]]).expand(1, 1, 2, 2)
    assert attention_kl(student, teacher, "cls", temperature).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["cls", "all"])
def test_against_the_divergence_of_torch(kind: Rows) -> None:
    student, teacher = rows(), rows()
    expected = sum(
        F.kl_div(student[n, h, q].log(), teacher[n, h, q], reduction="sum")
        for n in range(3)
        for h in range(2)
        for q in range(1 if kind == "cls" else 5)
    )
    torch.testing.assert_close(attention_kl(student, teacher, kind), expected / 3)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_other_numbers_of_heads_against_loops(temperature: float) -> None:
    student, teacher = rows(heads=2), rows(heads=3)
    total = 0.0
    for n in range(3):
        for q in range(5):
            one = []
            for x in (student, teacher):
                weights = [float(x[n, :, q, k].prod()) ** (1 / temperature) for k in range(5)]
                one.append([w / sum(weights) for w in weights])
            total += sum(t * float(torch.tensor(t / s).log()) for s, t in zip(*one, strict=True))
    assert attention_kl(student, teacher, "all", temperature).item() == pytest.approx(total / 3, rel=1e-5)


def test_the_temperature_matters_only_where_heads_differ() -> None:
    student, teacher, more = rows(), rows(), rows(heads=3)
    assert attention_kl(student, teacher, "cls", 1.0) == attention_kl(student, teacher, "cls", 5.0)
    assert attention_kl(student, more, "cls", 1.0) > attention_kl(student, more, "cls", 5.0)


def test_only_the_first_row_counts_for_the_class_token() -> None:
    student, teacher = rows(), rows()
    changed = student.clone()
    changed[:, :, 1:] = rows()[:, :, 1:]
    assert attention_kl(changed, teacher, "cls") == attention_kl(student, teacher, "cls")
    assert attention_kl(changed, teacher, "all") != attention_kl(student, teacher, "all")


def test_taps_are_summed() -> None:
    students, teachers = [rows(), rows(heads=3)], [rows(), rows(heads=4)]
    expected = sum(attention_kl(s, t, "all", 2.0) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(AttentionProbabilities("all", 2.0)(students, teachers, NO_TARGET), expected)


@pytest.mark.parametrize("kind", ["cls", "all"])
def test_the_minimum_is_zero_at_equality(kind: Rows) -> None:
    teacher = rows()
    logits = teacher.log().requires_grad_()
    value = attention_kl(logits.softmax(-1), teacher, kind)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(logits.grad, torch.zeros_like(teacher))
    assert attention_kl(rows(), teacher, kind) > 0.1


@pytest.mark.parametrize("kind", ["cls", "all"])
@pytest.mark.parametrize("heads", [2, 3])
def test_gradcheck(kind: Rows, heads: int) -> None:
    student, teacher = rows(2, 2, 3).requires_grad_(), rows(2, heads, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: attention_kl(s, t, kind, 2.0), (student, teacher))


@pytest.mark.parametrize("heads", [2, 3])
def test_the_gradient_reaches_every_head_of_the_student(heads: int) -> None:
    loss, student, teacher = AttentionProbabilities("all"), rows().requires_grad_(), rows(heads=heads)
    loss.build([tuple(student.shape)], [tuple(teacher.shape)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(dim=(2, 3)) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


@pytest.mark.parametrize("heads", [2, 3])
def test_twenty_steps_lower_it(heads: int) -> None:
    teacher, logits = rows(heads=heads), rows().log().requires_grad_()
    optimizer, values = torch.optim.Adam([logits], lr=0.1), []
    for _ in range(21):
        value = AttentionProbabilities("all")(logits.softmax(-1), teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("heads", [2, 3])
def test_the_order_of_the_batch_does_not_matter(heads: int) -> None:
    student, teacher, order = rows(5), rows(5, heads), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention_kl(student[order], teacher[order]), attention_kl(student, teacher))
    assert not torch.isclose(attention_kl(student[order], teacher), attention_kl(student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [2, 3])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, heads: int) -> None:
    student, teacher = rows().to(dtype).requires_grad_(), rows(heads=heads).to(dtype)
    value = attention_kl(student, teacher, "all")
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, attention_kl(student.float(), teacher.float(), "all"))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    network, tokens, teacher = nn.Linear(6, 5), torch.randn(3, 2, 5, 6), rows().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(tokens).float().softmax(-1).bfloat16()
        value = AttentionProbabilities("all")(student, teacher, NO_TARGET)
    torch.testing.assert_close(value, attention_kl(student.float(), teacher, "all"))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


def test_attention_to_one_token_alone_is_finite() -> None:
    # The other rows' zeros count as the smallest number of float32: KL = -ln(1.1754944e-38) = 87.3365.
    logits = torch.tensor([[[[0.0, 1000.0]]]]).expand(1, 1, 2, 2).clone().requires_grad_()
    teacher = torch.tensor([[[[1.0, 0.0]]]]).expand(1, 1, 2, 2)
    value = attention_kl(logits.softmax(-1), teacher)
    value.backward()
    assert value.item() == pytest.approx(87.3365, abs=1e-3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_underflown_probabilities_agree_with_themselves(dtype: torch.dtype) -> None:
    student = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], dtype=dtype, requires_grad=True)
    for teacher in (student.detach(), student.detach().expand(1, 3, 2, 2)):
        value = attention_kl(student, teacher, "all")
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["cls", "all"])
def test_even_attention_stays_finite(kind: Rows) -> None:
    student = torch.full((2, 2, 4, 4), 0.25, requires_grad=True)
    value = attention_kl(student, rows(2, 2, 4).float(), kind)
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_one_sample_of_one_head_and_one_token() -> None:
    # A row of one token is 1 in both.
    assert AttentionProbabilities()(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), NO_TARGET) == 0


def test_labels_are_not_looked_at() -> None:
    student, teacher = rows(2), rows(2)
    values = [
        AttentionProbabilities()(student, teacher, target)
        for target in (torch.tensor([0, 1]), torch.rand(2, 5), torch.tensor([4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_taps_are_attention() -> None:
    loss = AttentionProbabilities()
    assert (loss.student_tap, loss.teacher_tap) == ("attention", "attention")
    assert (loss.rows, loss.temperature) == ("cls", 1.0)


def test_bad_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"rows must be one of \['cls', 'all'\], got 'both'"):
        AttentionProbabilities("both")  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_bad_temperature_is_named(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        AttentionProbabilities(temperature=temperature)


@pytest.mark.parametrize("teacher", [(2, 2, 7, 7), (2, 5, 5)])
def test_sequences_of_two_lengths_are_refused(teacher: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"over sequences of one length, got \(2, 2, 5, 5\) and \(2, "):
        attention_kl(rows(2), torch.zeros(teacher))


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        AttentionProbabilities()([rows()] * 2, [rows()], NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 4),
    heads=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tokens=st.integers(1, 6),
    kind=st.sampled_from(["cls", "all"]),
)
def test_it_is_never_negative_and_repeated_samples_change_nothing(
    samples: int, heads: tuple[int, int], tokens: int, kind: Rows
) -> None:
    student, teacher = rows(samples, heads[0], tokens), rows(samples, heads[1], tokens)
    value = attention_kl(student, teacher, kind)
    assert value.item() >= -1e-12
    torch.testing.assert_close(attention_kl(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), kind), value)
