from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers import Complement, Criteria, Ramp, Schedule, Term, Window
from kd_lightning.distillers.lessons import Lessons
from kd_lightning.distillers.unreached import reached
from kd_lightning.losses import CrossEntropy, Hint, Loss, SoftTarget
from kd_lightning.losses.base import Shapes
from kd_lightning.models import Outputs, TapPlan

STUDENT = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
TEACHER = torch.tensor([[0.0, 4.0, 1.0], [1.0, 1.0, 1.0]])
TARGET = torch.tensor([1, 2])
IMAGES = torch.zeros(2, 1, 4, 4)
BATCH = Batch({"default": IMAGES}, TARGET)


class Gap(nn.Module):
    """A plain module: the mean of student - teacher."""

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (student - teacher).mean()


class Raises(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("computed all the same")


class Heard(Loss):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []
        self.shapes: tuple[Shapes, Shapes] = ([], [])

    def build(self, student: Shapes, teacher: Shapes) -> None:
        self.shapes = (student, teacher)

    def forward(self, student: Any, teacher: Any, target: Tensor, **needed: Any) -> Tensor:
        self.given.append((student, teacher, target, needed))
        return torch.tensor(1.0)


class HeardWithNeeds(Heard):
    needs: ClassVar[frozenset[str]] = frozenset({"index", "number", "epoch"})


class Strange(Heard):
    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "moon"})


def answered(
    criteria: Criteria, epoch: int = 0, batch: Batch = BATCH, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    student = {"default": Outputs(STUDENT, {"a": torch.tensor([5.0]), "b": torch.tensor([6.0])})}
    teacher = {"default": Outputs(TEACHER, {"c": torch.tensor([7.0]), "d": torch.tensor([8.0])})}
    return criteria(student, teacher, batch, epoch, **options)


def test_the_loss_is_the_weighted_sum_and_the_values_are_unweighted() -> None:
    loss, values = answered(Criteria({"ce": Term(CrossEntropy(), 0.1), "gap": Term(Gap(), -2.0)}))
    log_p = [2 - torch.tensor([1.0, 2.0, 0.0]).exp().sum().log(), 3 - torch.tensor([0.0, -1.0, 3.0]).exp().sum().log()]
    ce = -(log_p[0] + log_p[1]) / 2
    gap = torch.tensor((3 + 2 - 8) / 6)
    torch.testing.assert_close(values, {"ce": ce, "gap": gap})
    torch.testing.assert_close(loss, 0.1 * ce - 2 * gap)


def test_values_carry_no_graph_and_the_loss_does() -> None:
    logits = STUDENT.clone().requires_grad_()
    criteria = Criteria({"ce": Term(CrossEntropy(), 0.5)})
    loss, values = criteria({"default": Outputs(logits, {})}, {}, BATCH, 0)
    assert loss.requires_grad
    assert not values["ce"].requires_grad


def test_a_term_of_weight_0_is_not_computed() -> None:
    loss, values = answered(Criteria({"gap": Term(Gap()), "off": Term(Raises(), 0.0)}))
    assert set(values) == {"gap"}
    assert float(loss) == pytest.approx(-0.5)
    with pytest.raises(RuntimeError, match="computed all the same"):
        answered(Criteria({"gap": Term(Gap()), "off": Term(Raises(), 1e-9)}))


def test_windows_say_when_a_term_is_computed_and_the_teacher_asked() -> None:
    criteria = Criteria(
        {
            "ce": Term(CrossEntropy(), Window(1.0, start=2)),
            "kd": Term(SoftTarget(), Window(0.5, end=2)),
            "other": Term(Gap(), Window(3.0, start=1, end=2), view="strong"),
        }
    )
    assert [criteria.active(epoch) for epoch in range(3)] == [{"kd": 0.5}, {"kd": 0.5, "other": 3.0}, {"ce": 1.0}]
    assert [criteria.asks_teacher(epoch) for epoch in range(3)] == [{"default"}, {"default", "strong"}, set()]
    assert set(answered(criteria, 0)[1]) == {"kd"}
    assert set(answered(criteria, 2)[1]) == {"ce"}
    assert criteria.views() == {"default", "strong"}


def test_several_views_come_as_lists_in_their_order() -> None:
    loss = Heard()
    criteria = Criteria({"own": Term(loss, student=["a", "logits"], views=["x", "y"], teacher_views=["y"])})
    assert criteria.views() == {"x", "y"}
    assert criteria.asks_teacher(0) == {"y"}
    seen = {view: Outputs(STUDENT + number, {"a": torch.tensor([number])}) for number, view in enumerate("xy")}
    criteria(seen, {"y": Outputs(TEACHER, {})}, BATCH, 0)
    student, teacher, _, _ = loss.given[0]
    assert [float(value.flatten()[0]) for value in student] == [0.0, 1.0, 1.0, 2.0]
    assert teacher is TEACHER
    shapes = {"a": (2, 1), "logits": (2, 3)}
    criteria.build(TapPlan({"a": "a"}, shapes), TapPlan({}, {"logits": (2, 3)}))  # type: ignore[arg-type]
    assert loss.shapes == ([(2, 1), (2, 3)] * 2, [(2, 3)])


def test_the_teacher_looks_at_a_view_of_its_own() -> None:
    loss = Heard()
    criteria = Criteria({"own": Term(loss, teacher_views=["weak"])})
    criteria({"default": Outputs(STUDENT, {})}, {"weak": Outputs(TEACHER, {})}, BATCH, 0)
    assert loss.given[0][0] is STUDENT
    assert loss.given[0][1] is TEACHER


@pytest.mark.parametrize("views", [{"views": []}, {"teacher_views": []}])
def test_no_views_are_an_error(views: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"criteria\.own: views and teacher_views must name a view, or be null; got \[\]"
    ):
        Criteria({"own": Term(Gap(), **views)})


def test_nothing_to_learn_in_an_epoch_is_an_error() -> None:
    criteria = Criteria({"ce": Term(CrossEntropy(), Window(1.0, end=1)), "off": Term(Gap(), 0.0)})
    with pytest.raises(ValueError, match="weighs 0 in epoch 4"):
        answered(criteria, 4)


def test_a_loss_gets_what_it_needs() -> None:
    loss = HeardWithNeeds()
    batch = Batch({"default": IMAGES}, TARGET, torch.tensor([4, 9]), torch.tensor([3, 3]))
    answered(Criteria({"x": Term(loss)}), 3, batch)
    needed = loss.given[0][3]
    assert set(needed) == {"index", "number", "epoch"}
    assert needed["index"].tolist() == [4, 9]
    assert needed["number"].tolist() == [3, 3]
    assert needed["epoch"] == 3


def test_a_loss_gets_nothing_that_it_did_not_ask_for() -> None:
    loss = Heard()
    answered(Criteria({"x": Term(loss)}), 3, Batch({"default": IMAGES}, TARGET, torch.tensor([4, 9])))
    assert loss.given[0][3] == {}


def test_a_missing_index_is_an_error_that_names_the_term() -> None:
    with pytest.raises(ValueError, match=r"criteria\.memory: the loss needs \['index', 'number'\]") as caught:
        answered(Criteria({"ce": Term(CrossEntropy()), "memory": Term(HeardWithNeeds())}))
    assert "DataLoader" in str(caught.value)


def test_epoch_0_is_not_a_missing_epoch() -> None:
    class NeedsEpoch(Heard):
        needs: ClassVar[frozenset[str]] = frozenset({"epoch"})

    loss = NeedsEpoch()
    answered(Criteria({"x": Term(loss)}), 0)
    assert loss.given[0][3] == {"epoch": 0}


def test_one_tap_gives_a_tensor_and_several_give_lists_in_their_order() -> None:
    one, several, alone = Heard(), Heard(), Heard()
    criteria = Criteria(
        {
            "one": Term(one, student="a", teacher="d"),
            "several": Term(several, student=["b", "logits", "a"], teacher=["d"]),
            "alone": Term(alone, student=["a"], teacher=None),
        }
    )
    answered(criteria)
    assert isinstance(one.given[0][0], Tensor)
    assert (one.given[0][0].item(), one.given[0][1].item()) == (5, 8)
    student, teacher = several.given[0][:2]
    assert isinstance(student, list)
    assert (student[0].item(), student[2].item(), teacher[0].item()) == (6, 5, 8)
    assert student[1] is STUDENT
    assert isinstance(alone.given[0][0], list)
    assert alone.given[0][1] is None
    assert criteria.student_taps() == ["a", "b", "logits"]
    assert criteria.teacher_taps() == ["d"]


def test_losses_are_told_the_shapes_of_their_taps() -> None:
    loss, alone = Heard(), Heard()
    criteria = Criteria({"x": Term(loss, student=["b", "a"], teacher="c"), "y": Term(alone, teacher=None)})
    student = TapPlan({"a": "a", "b": "b"}, {"a": (2, 3), "b": (2, 5, 4, 4), "logits": (2, 10)})
    criteria.build(student, TapPlan({"c": "c"}, {"c": (2, 7), "logits": (2, 10)}))
    assert loss.shapes == ([(2, 5, 4, 4), (2, 3)], [(2, 7)])
    assert alone.shapes == ([(2, 10)], [])


def test_a_term_looks_at_its_view() -> None:
    loss = Heard()
    criteria = Criteria({"x": Term(loss, view="strong")})
    views = {"default": Outputs(STUDENT, {}), "strong": Outputs(STUDENT + 1, {})}
    criteria(views, {"strong": Outputs(TEACHER + 1, {})}, BATCH, 0)
    assert torch.equal(loss.given[0][0], STUDENT + 1)
    assert torch.equal(loss.given[0][1], TEACHER + 1)


def test_what_is_no_scalar_is_an_error_that_names_the_term() -> None:
    class PerSample(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            return student.sum(dim=1)

    with pytest.raises(ValueError, match=r"criteria\.wide: a loss must return a scalar, got shape \(2,\)"):
        answered(Criteria({"wide": Term(PerSample())}))


def test_unknown_need_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"criteria\.x: the loss needs \['moon'\], known are \['epoch', 'epochs', 'index'"
    ):
        Criteria({"x": Term(Strange())})


@pytest.mark.parametrize("name", ["loss", "a.b"])
def test_names_that_cannot_be_logged_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"must not have a term called '{name}'"):
        Criteria({name: Term(CrossEntropy())})


def test_no_term_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        Criteria({})


def test_adapters_are_parameters_of_the_criteria() -> None:
    class Adapter(Gap):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

    criteria = Criteria({"a": Term(Adapter()), "ce": Term(CrossEntropy())})
    assert {name for name, _ in criteria.named_parameters()} == {"losses.a.linear.weight", "losses.a.linear.bias"}


def test_reached_finds_exactly_the_leaves_that_backward_gives_a_gradient() -> None:
    leaves = {name: torch.randn(3, requires_grad=True) for name in "abcdef"}
    a, b, c, d, e, f = leaves.values()
    shared = a * b
    loss = (shared + shared.exp() * c.detach() + torch.cat([d[:1], b[1:]]) + f.detach()).sum()
    _ = (e * 2).sum()
    assert reached(loss) == {a, b, d}
    loss.backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"a", "b", "d"}


def test_reached_of_networks_with_an_unused_head() -> None:
    body, head, frozen = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 3).requires_grad_(False)
    loss = frozen(torch.relu(body(torch.randn(5, 4)))).square().mean()
    assert reached(loss) == set(body.parameters())
    assert reached(head(body(torch.randn(5, 4))).sum()) == {*body.parameters(), *head.parameters()}


def test_nothing_is_reached_without_a_graph() -> None:
    assert reached(torch.tensor(1.0)) == set()


class Informed(Heard):
    """Needs something of the run and something of the batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "train_targets", "teacher_classifier"})

    def notice(self, samples: int) -> str:
        return f"a memory of {samples} rows"


class Counting(Heard):
    needs: ClassVar[frozenset[str]] = frozenset({"train_targets"})


class Judged(Heard):
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_norms"})


FACTS = {"train_targets": torch.tensor([0, 1, 2, 2]), "teacher_classifier": nn.Linear(3, 3)}


def test_facts_of_the_run_are_asked_for_once_and_given_every_time() -> None:
    loss, asked = Informed(), []

    def fact(need: str, term: Term) -> object:
        asked.append((need, term))
        return FACTS[need]

    criteria = Criteria({"ce": Term(CrossEntropy()), "x": Term(loss)})
    criteria.inform(fact)
    assert asked == [("teacher_classifier", criteria.terms["x"]), ("train_targets", criteria.terms["x"])]
    answered(criteria, 3)
    answered(criteria, 4)
    assert [given[3]["epoch"] for given in loss.given] == [3, 4]
    for given in loss.given:
        assert given[3].keys() == {"epoch", "train_targets", "teacher_classifier"}
        assert given[3]["train_targets"] is FACTS["train_targets"]
        assert given[3]["teacher_classifier"] is FACTS["teacher_classifier"]
    assert len(asked) == 2


class Timed(Heard):
    """Needs all of the time."""

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})


def lasting(epochs: int | None) -> Callable[[str, Term], object]:
    def fact(need: str, term: Term) -> object:
        assert need == "epochs"
        return epochs

    return fact


def test_shares_are_of_the_training_that_they_are_told_of() -> None:
    terms = {
        "ce": Term(CrossEntropy(), Ramp(1.0, 0.5)),
        "kd": Term(SoftTarget(), Window(2.0, end=0.25)),
        "gap": Term(Gap(), Window(3.0, start=3), view="strong"),
    }
    criteria = Criteria(terms)
    criteria.inform(lasting(4))
    assert [criteria.active(epoch) for epoch in range(4)] == [
        {"ce": 0.5, "kd": 2.0},
        {"ce": 1.0},
        {"ce": 1.0},
        {"ce": 1.0, "gap": 3.0},
    ]
    assert [criteria.asks_teacher(epoch) for epoch in range(4)] == [{"default"}, set(), set(), {"strong"}]
    loss, values = answered(criteria, 0)
    torch.testing.assert_close(loss, 0.5 * values["ce"] + 2 * values["kd"])
    criteria.inform(lasting(8))
    assert [criteria.active(epoch).get("ce") for epoch in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [criteria.active(epoch).get("kd") for epoch in range(4)] == [2.0, 2.0, None, None]
    assert [criteria.active(epoch).get("gap") for epoch in range(4)] == [None, None, None, 3.0]


def test_a_share_of_an_endless_training_is_an_error_that_names_the_term() -> None:
    criteria = Criteria({"ce": Term(CrossEntropy()), "kd": Term(SoftTarget(), Ramp(1.0, 0.25))})
    message = r"0\.25 is a share of the training, which needs trainer\.max_epochs >= 1"
    with pytest.raises(ValueError, match=f"^criteria\\.kd: {message}"):
        criteria.inform(lasting(None))
    with pytest.raises(ValueError, match=message):  # nor was one told
        answered(criteria)


def test_epochs_need_no_length_of_the_training() -> None:
    criteria = Criteria({"ce": Term(CrossEntropy(), Ramp(1.0, 4)), "kd": Term(SoftTarget(), Window(2.0, 1, 2))})
    criteria.inform(lasting(None))
    assert [criteria.active(epoch) for epoch in range(3)] == [{"ce": 0.25}, {"ce": 0.5, "kd": 2.0}, {"ce": 0.75}]


def test_a_schedule_of_ones_own_is_asked_with_epoch_and_length() -> None:
    class Alternating(Schedule):
        def __call__(self, epoch: int, epochs: int | None) -> float:
            return 0.0 if epochs is None or epoch % 2 else epochs - epoch

    criteria = Criteria({"gap": Term(Gap(), Alternating())})
    criteria.inform(lasting(10))
    assert [criteria.active(epoch) for epoch in range(3)] == [{"gap": 10}, {}, {"gap": 8}]


@pytest.mark.parametrize("epochs", [7, None])
def test_a_loss_is_told_the_length_of_the_training_also_where_nobody_knows_it(epochs: int | None) -> None:
    loss = Timed()
    criteria = Criteria({"x": Term(loss)})
    criteria.inform(lasting(epochs))
    answered(criteria, 2)
    assert loss.given[0][3] == {"epoch": 2, "epochs": epochs}


def test_each_term_gets_the_facts_of_its_own_taps() -> None:
    first, second = Judged(), Judged()
    criteria = Criteria({"a": Term(first, teacher="c"), "b": Term(second, teacher=["d", "c"])})
    criteria.inform(lambda need, term: [need, *term.teacher_taps()])
    answered(criteria)
    assert first.given[0][3] == {"teacher_norms": ["teacher_norms", "c"]}
    assert second.given[0][3] == {"teacher_norms": ["teacher_norms", "d", "c"]}


def test_a_fact_that_nobody_knows_is_an_error_that_names_the_term() -> None:
    def nobody(need: str, term: Term) -> object:
        raise ValueError(f"nobody knows {need}")

    with pytest.raises(ValueError, match=r"^criteria\.x: nobody knows teacher_norms$"):
        Criteria({"ce": Term(CrossEntropy()), "x": Term(Judged())}).inform(nobody)


def test_a_fact_that_is_nothing_is_an_error_when_the_loss_is_computed() -> None:
    criteria = Criteria({"x": Term(Judged())})
    criteria.inform(lambda need, term: None)
    with pytest.raises(ValueError, match=r"criteria\.x: the loss needs \['teacher_norms'\]"):
        answered(criteria)


def test_facts_are_in_no_state() -> None:
    criteria = Criteria({"x": Term(Informed())})
    criteria.inform(lambda need, term: FACTS[need])
    assert not criteria.state_dict()
    assert not list(criteria.parameters())


def test_notices_are_of_losses_that_have_something_to_say_of_the_training_set() -> None:
    criteria = Criteria({"ce": Term(CrossEntropy()), "quiet": Term(Counting()), "memory": Term(Informed())})
    assert criteria.notices() == []
    criteria.inform(lambda need, term: FACTS[need])
    assert criteria.notices() == ["criteria.memory: a memory of 4 rows"]


def test_a_plural_tap_gives_a_list_and_beside_others_its_parts_in_order() -> None:
    plural, mixed, wrapped = Heard(), Heard(), Heard()
    criteria = Criteria(
        {
            "plural": Term(plural, student="stages", teacher="stages"),
            "mixed": Term(mixed, student=["a", "stages", "logits"], teacher=["stages", "c"]),
            "wrapped": Term(wrapped, student=["stages"], teacher=None),
        }
    )
    parts, theirs = [torch.tensor([1.0]), torch.tensor([2.0])], [torch.tensor([3.0])]
    student = {"default": Outputs(STUDENT, {"a": torch.tensor([5.0]), "stages": parts})}
    teacher = {"default": Outputs(TEACHER, {"c": torch.tensor([7.0]), "stages": theirs})}
    criteria(student, teacher, BATCH, 0)
    assert isinstance(plural.given[0][0], list)
    assert [part.item() for part in plural.given[0][0]] == [1, 2]
    assert [part.item() for part in plural.given[0][1]] == [3]
    assert [part.flatten()[0].item() for part in mixed.given[0][0]] == [5, 1, 2, 1]
    assert mixed.given[0][0][3] is STUDENT
    assert [part.item() for part in mixed.given[0][1]] == [3, 7]
    assert [part.item() for part in wrapped.given[0][0]] == [1, 2]
    assert criteria.student_taps() == ["a", "logits", "stages"]


def test_losses_are_told_the_shapes_of_all_parts() -> None:
    loss = Heard()
    criteria = Criteria({"x": Term(loss, student=["stages", "a"], teacher="stages")})
    names = {"a": "a", "stages": ["s1", "s2"]}
    student = TapPlan(names, {"a": (2, 3), "stages": [(2, 4, 8, 8), (2, 5, 4, 4)], "logits": (2, 10)})
    teacher = TapPlan({"stages": ["t1"]}, {"stages": [(2, 9, 8, 8)], "logits": (2, 10)})
    criteria.build(student, teacher)
    assert loss.shapes == ([(2, 4, 8, 8), (2, 5, 4, 4), (2, 3)], [(2, 9, 8, 8)])


def test_what_a_loss_states_is_tapped_unless_the_term_says_otherwise() -> None:
    hint, plain = Hint(), Gap()
    assert Term(hint).taps() == ("stage:2", "stage:2")
    assert Term(hint, student="embedding").taps() == ("embedding", "stage:2")
    assert Term(hint, teacher=None).taps() == ("stage:2", None)
    assert Term(plain).taps() == ("logits", "logits")
    assert Term(CrossEntropy()).taps() == ("logits", None)


MAPS = TapPlan({"stage:2": "s"}, {"stage:2": (2, 4, 8, 8), "logits": (2, 10)})
VECTORS = TapPlan({"stage:2": "t"}, {"stage:2": (2, 6), "logits": (2, 10)})


def test_shapes_that_a_loss_cannot_match_are_an_error_that_names_the_term() -> None:
    with pytest.raises(ValueError, match=r"^criteria\.hint: student and teacher must both be maps or both be vectors"):
        Criteria({"ce": Term(CrossEntropy()), "hint": Term(Hint())}).build(MAPS, VECTORS)


def test_adapters_start_from_the_seed_and_the_name_whatever_else_is_built() -> None:
    def adapters(seed: int, name: str, *before: str) -> dict[str, Tensor]:
        pl.seed_everything(seed)
        torch.rand(len(before) + 1)
        hints = {other: Term(Hint("conv1x1")) for other in (*before, name)}
        criteria = Criteria(hints)
        criteria.build(MAPS, MAPS)
        return criteria.terms[name].loss.state_dict()

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    alone = adapters(1, "hint")
    assert alone
    assert same(alone, adapters(1, "hint", "other", "another"))
    assert not same(alone, adapters(2, "hint"))
    assert not same(alone, adapters(1, "tip"))


def test_building_draws_nothing_from_the_generator_of_the_run() -> None:
    before = torch.get_rng_state()
    Criteria({"hint": Term(Hint())}).build(MAPS, MAPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_complement_follows_the_other_term_at_its_name() -> None:
    criteria = Criteria(
        {"ce": Term(CrossEntropy(), Complement("kd"), teacher=None), "kd": Term(SoftTarget(), Window(0.75, end=1))}
    )
    assert [criteria.active(epoch) for epoch in range(2)] == [{"ce": 0.25, "kd": 0.75}, {"ce": 1.0}]
    assert (
        Criteria({"ce": Term(CrossEntropy(), Complement("gap")), "gap": Term(Gap(), 0.75)}).terms["ce"].weight == 0.25
    )
    with pytest.raises(ValueError, match=r"criteria.ce: weight is the complement of 'kd', which is no term"):
        Criteria({"ce": Term(CrossEntropy(), Complement("kd"))})


def test_among_peers_it_is_the_complement_of_all_teachers_together() -> None:
    def weights(of_kd: float | Schedule) -> dict[str, float]:
        terms = {"ce": Term(CrossEntropy(), Complement("kd"), teacher=None), "kd": Term(SoftTarget(), of_kd)}
        lessons = Lessons({"a": terms, "b": terms}, {"a": ["b", "c"], "b": ["a"]})
        assert lessons.here is not None
        return lessons.here.active(0)

    expected = {"a_ce": 0.25, "a_kd_from_b": 0.375, "a_kd_from_c": 0.375, "b_ce": 0.25, "b_kd": 0.75}
    assert weights(0.75) == weights(Window(0.75)) == expected
