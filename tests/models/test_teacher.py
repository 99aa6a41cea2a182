import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import FrozenTeacher, Network, Outputs, TapPlan, Teacher, TeacherCheck, Views, save_weights
from kd_lightning.models.input_adapter import InputAdapter

MODULE = "teachers_beside_the_script"
SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.drop(self.features(x).mean((2, 3))))
"""
VIEWS = Views((3, 8, 8))


@pytest.fixture(autouse=True)
def nets(importable: Callable[[str, str], None]) -> None:
    importable(MODULE, SOURCE)


def net(classes: int = 5) -> nn.Module:
    return Network(f"{MODULE}.Net").build(classes, seed=4)


def recipe(folder: Path, **given: Any) -> Network:
    save_weights(net(), folder / "w.safetensors")
    return Network(f"{MODULE}.Net", weights=str(folder / "w.safetensors"), **given)


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    return Batch({"default": torch.randn(6, 3, 8, 8).to(dtype), "weak": torch.ones(6, 3, 8, 8)}, torch.zeros(6).long())


def ready(
    network: Network | nn.Module, taps: tuple[str, ...] = (), views: Views = VIEWS, **given: Any
) -> FrozenTeacher:
    teacher = FrozenTeacher(network, **given)
    teacher.setup(5, views, taps)
    return teacher


class Owner(nn.Module):
    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teacher = teacher


def network_of(teacher: FrozenTeacher) -> nn.Module:
    assert teacher.network is not None
    return teacher.network


def test_it_answers_with_logits_and_taps_of_the_weights(tmp_path: Path) -> None:
    teacher, plain = ready(recipe(tmp_path), ("features", "fc:in", "logits")), net().eval()
    given = batch()
    logits, taps = teacher(given)
    torch.testing.assert_close(logits, plain(given.image))
    torch.testing.assert_close(taps["features"], plain.get_submodule("features")(given.image))
    torch.testing.assert_close(taps["fc:in"], taps["features"].mean((2, 3)))
    assert set(taps) == {"features", "fc:in"}
    torch.testing.assert_close(teacher(given, "weak").logits, plain(torch.ones(6, 3, 8, 8)))


def test_shapes() -> None:
    assert ready(net(), ("features", "logits")).plan().shapes == {"features": (2, 4, 8, 8), "logits": (2, 5)}


def test_it_stays_in_eval_whatever_its_owner_does() -> None:
    teacher, given = ready(net()), batch()
    owner = Owner(teacher)
    first = teacher(given).logits
    for mode in (True, False, True):
        owner.train(mode)
        assert not any(module.training for module in network_of(teacher).modules())
        assert torch.equal(teacher(given).logits, first)


def test_it_returns_to_eval_when_somebody_trains_the_network_itself() -> None:
    teacher, given = ready(net()), batch()
    first = teacher(given).logits
    network_of(teacher).train()
    assert torch.equal(teacher(given).logits, first)


def test_its_weights_and_buffers_never_change() -> None:
    teacher = ready(net(), ("features",))
    before = copy.deepcopy(network_of(teacher).state_dict())
    assert "features.1.running_mean" in before
    for _ in range(3):
        teacher(batch())
    assert all(torch.equal(value, before[key]) for key, value in network_of(teacher).state_dict().items())


def test_nothing_of_it_has_a_gradient() -> None:
    teacher, given = ready(net(), ("features",)), batch()
    given.image.requires_grad_()
    outputs = teacher(given)
    assert not any(parameter.requires_grad for parameter in network_of(teacher).parameters())
    assert not outputs.logits.requires_grad
    assert not outputs.taps["features"].requires_grad


def test_it_is_no_part_of_who_learns_from_it() -> None:
    owner = Owner(ready(net()))
    assert set(owner.state_dict()) == {"student.weight", "student.bias"}
    assert len(list(owner.parameters())) == 2
    assert [name for name, _ in owner.named_children()] == ["student"]


def test_a_copy_of_the_owner_shares_it() -> None:
    owner = Owner(ready(net()))
    twin = copy.deepcopy(owner)
    assert twin.teacher is owner.teacher
    assert twin.student.weight is not owner.student.weight


def test_a_teacher_without_weights_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"teacher resnet18 has no weights: it would teach noise; give network.weights"
    ):
        FrozenTeacher(Network("resnet18"))


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the teacher has 7 classes, the data 5"):
        ready(net(7))
    with pytest.raises(ValueError, match="has 5 classes, the network 6"):
        FrozenTeacher(recipe(tmp_path)).setup(6, VIEWS, ())


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(ValueError, match="tap 'featurs': Net has no such submodule; it has, nearest first: features"):
        ready(net(), ("featurs",))


def test_it_must_be_set_up_first() -> None:
    with pytest.raises(RuntimeError, match="setup must be called before a teacher answers"):
        FrozenTeacher(net())(batch())


def test_a_second_setup_keeps_the_network(tmp_path: Path) -> None:
    teacher = ready(recipe(tmp_path))
    first = teacher.network
    (tmp_path / "w.safetensors").unlink()
    teacher.setup(5, VIEWS, ("features",))
    assert teacher.network is first
    assert set(teacher(batch()).taps) == {"features"}


@pytest.mark.parametrize("top1", [0.0, -0.5, 1.01, 76.1])
def test_an_expected_top1_out_of_range(top1: float) -> None:
    with pytest.raises(ValueError, match=rf"expected_top1 must be in \(0, 1\], got {top1}"):
        FrozenTeacher(net(), expected_top1=top1)


def test_the_ends_of_the_expected_top1() -> None:
    assert FrozenTeacher(net(), expected_top1=1.0).expected_top1 == 1.0
    assert FrozenTeacher(net(), expected_top1=0.001).expected_top1 == 0.001
    assert FrozenTeacher(net()).expected_top1 is None


@pytest.mark.parametrize(
    ("above_chance", "classes", "threshold"),
    [(2.0, 100, 0.02), (2.0, 2, 0.75), (2.0, 3, 2 / 3), (1.0, 2, 0.5), (0.0, 10, 0.0), (99.0, 10, 0.55)],
)
def test_the_threshold_of_the_examination(above_chance: float, classes: int, threshold: float) -> None:
    assert TeacherCheck(above_chance=above_chance).threshold(classes) == pytest.approx(threshold)


def test_a_bad_examination_is_named() -> None:
    with pytest.raises(ValueError, match=r"check.images must be >= 1, got 0; check: false switches it off"):
        TeacherCheck(images=0)
    with pytest.raises(ValueError, match=r"check.above_chance must be >= 0, got -1"):
        TeacherCheck(above_chance=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_precision_of_its_own(dtype: Any) -> None:
    given, plain = batch(), net().eval()
    logits, taps = ready(net(), ("features",), dtype=dtype)(given)
    assert logits.dtype == taps["features"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(logits.float(), plain(given.image), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_follows_the_precision_of_the_run(dtype: torch.dtype) -> None:
    assert ready(net())(batch(dtype)).logits.dtype == dtype


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_changes_no_answer(channels_last: bool) -> None:
    teacher, given = ready(net(), channels_last=channels_last), batch()
    weight = network_of(teacher).get_parameter("features.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    torch.testing.assert_close(teacher(given).logits, net().eval()(given.image))


DATA = Views((1, 4, 4), mean=(0.5,), std=(0.25,))


def test_renormalisation_by_hand() -> None:
    # A pixel of 0.75 is (0.75 - 0.5) / 0.25 = 1 to the data, and (0.75 - 0.4) / 0.2 = 1.75 to the network.
    adapted = InputAdapter(DATA, ((0.4,), (0.2,)), None)(torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(adapted, torch.full((2, 1, 4, 4), 1.75))


def test_each_channel_is_renormalised_by_its_own_figures() -> None:
    views = Views((2, 1, 1), mean=(0.5, 0.0), std=(0.25, 1.0))
    adapted = InputAdapter(views, ((0.4, 0.1), (0.2, 0.5)), None)(torch.tensor([[[[1.0]], [[0.6]]]]))
    torch.testing.assert_close(adapted, torch.tensor([[[[1.75]], [[1.0]]]]))  # (0.6 - 0.1) / 0.5 = 1


@pytest.mark.parametrize("normalisation", [None, ((0.5,), (0.25,))])
@pytest.mark.parametrize("size", [None, 4])
def test_images_that_fit_are_left_alone(normalisation: Any, size: int | None) -> None:
    image = torch.randn(2, 1, 4, 4)
    assert InputAdapter(DATA, normalisation, size)(image) is image


def test_resizing_by_hand() -> None:
    # Half the size, antialiased: a triangle over the pixels at -1.5 … 1.5, which weigh 1, 3, 3, 1 inside the image.
    row = torch.tensor([0.0, 0.0, 7.0, 0.0]).expand(1, 1, 4, 4)
    adapted = InputAdapter(DATA, None, 2)(row)
    # Left: pixels 0, 1, 2 weigh 3, 3, 1; right: pixels 1, 2, 3 weigh 1, 3, 3.
    torch.testing.assert_close(adapted, torch.tensor([1.0, 3.0]).expand(1, 1, 2, 2))
    assert InputAdapter(DATA, None, 6)(torch.ones(1, 1, 4, 4)).shape == (1, 1, 6, 6)


def test_normalisations_that_cannot_be_related_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean and std \(\(0.4,\), \(0.2,\)\), but the data does not say its own"):
        InputAdapter(Views((1, 4, 4)), ((0.4,), (0.2,)), None)


def test_low_precision_leaves_no_trace_in_the_figures() -> None:
    adapter, image = InputAdapter(DATA, ((0.437,), (0.213,)), None), torch.ones(1, 1, 4, 4)
    before = adapter(image)
    assert adapter(image.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(adapter(image), before)


def test_the_teacher_sees_the_images_that_it_was_trained_on(tmp_path: Path) -> None:
    views = Views((3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = ready(recipe(tmp_path, mean=(0.4,) * 3, std=(0.2,) * 3, image_size=4), ("features",), views, fold=False)
    seen: list[Tensor] = []
    network_of(teacher).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs = teacher(batch(), "weak")
    torch.testing.assert_close(seen[0], torch.full((6, 3, 4, 4), 1.75))
    assert teacher.plan().shapes["features"] == (2, 4, 4, 4)
    assert outputs.taps["features"].shape == (6, 4, 4, 4)


def test_the_plan_says_where_the_symbols_are() -> None:
    found = ready(net(), ("stages", "stages:preact", "last_map", "embedding")).plan()
    assert found.names == {
        "stages": ["features"],
        "stages:preact": ["features.2:in"],
        "last_map": "features",
        "embedding": "fc:in",
    }
    assert found.shapes == {
        "stages": [(2, 4, 8, 8)],
        "stages:preact": [(2, 4, 8, 8)],
        "last_map": (2, 4, 8, 8),
        "embedding": (2, 4),
        "logits": (2, 5),
    }


def test_it_answers_symbols_as_they_were_asked_for() -> None:
    teacher, given = ready(net(), ("stages", "stages:preact", "embedding")), batch()
    taps = teacher(given).taps
    assert set(taps) == {"stages", "stages:preact", "embedding"}
    (stage,), (before,) = taps["stages"], taps["stages:preact"]
    assert (before < 0).any()
    assert torch.equal(before.relu(), stage)
    torch.testing.assert_close(taps["embedding"], stage.mean((2, 3)))


def test_its_plan_is_of_its_own_image_size(tmp_path: Path) -> None:
    assert ready(recipe(tmp_path, image_size=4), ("stages",)).plan().shapes["stages"] == [(2, 4, 4, 4)]


def test_its_classifier_makes_logits_of_embeddings() -> None:
    teacher, given = ready(net(), ("embedding",)), batch()
    logits, taps = teacher(given)
    torch.testing.assert_close(teacher.classifier()(taps["embedding"]), logits)


def test_gradients_pass_through_its_classifier_and_do_not_stay_in_it() -> None:
    teacher = ready(net())
    embedding = torch.randn(3, 2, 4, requires_grad=True)
    logits = teacher.classifier()(embedding)
    assert logits.shape == (3, 2, 5)
    logits[..., 1].sum().backward()
    assert embedding.grad is not None
    torch.testing.assert_close(embedding.grad, network_of(teacher).get_parameter("fc.weight")[1].expand(3, 2, 4))
    assert all(parameter.grad is None for parameter in network_of(teacher).parameters())


def test_its_classifier_takes_embeddings_of_another_precision() -> None:
    assert ready(net(), dtype="bfloat16").classifier()(torch.randn(3, 4)).dtype == torch.bfloat16


def test_a_teacher_without_a_known_classifier_is_an_error() -> None:
    teacher = ready(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh()))
    with pytest.raises(ValueError, match="the classifier of Sequential is not known"):
        teacher.classifier()


def test_norms_are_shift_and_size_of_scale_of_the_normalisation_in_front() -> None:
    network = net()
    norm = network.get_submodule("features.1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data, norm.weight.data = torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([2.0, -0.5, 1.0, 0.0])
    teacher = ready(network, ("stages:preact", "features.2:in"), dtype="bfloat16")
    for tap in ("stages:preact", "features.2:in"):
        ((mean, std),) = teacher.norms(tap)
        assert mean.tolist() == [1.0, -2.0, 0.0, 3.0]
        assert std.tolist() == [2.0, 0.5, 1.0, 0.0]
        assert mean.dtype == std.dtype == torch.float32
        assert not mean.requires_grad


def test_norms_of_each_part_of_a_plural_tap(tmp_path: Path) -> None:
    network = Network("cifar_resnet8").build(5)
    for name, module in network.named_modules():
        if name.endswith("bn2") and isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, float(name.split(".")[1]))
    norms = ready(network, ("stages:preact",)).norms("stages:preact")
    assert [(len(mean), mean[0].item(), std[0].item()) for mean, std in norms] == [
        (16, 0.0, 1.0),
        (32, 1.0, 1.0),
        (64, 2.0, 1.0),
    ]


def test_no_normalisation_in_front_is_an_error() -> None:
    teacher = ready(net(), ("features.0:in",))
    with pytest.raises(ValueError, match="tap 'features.0:in': there is no batch normalisation with scale and shift"):
        teacher.norms("features.0:in")


class Answers(Teacher):
    """A teacher that is no single network."""

    check = False
    expected_top1 = None

    def setup(self, num_classes: int, views: Views, taps: Any) -> None: ...

    def to(self, device: torch.device) -> None: ...

    def plan(self) -> TapPlan:
        return TapPlan({}, {"logits": (2, 5)})

    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        return Outputs(torch.zeros(len(batch), 5), {})


def test_a_teacher_that_is_no_network_has_neither_classifier_nor_norms() -> None:
    with pytest.raises(ValueError, match="a Answers has no single classifier that a loss could use: take a Frozen"):
        Answers().classifier()
    with pytest.raises(
        ValueError, match="a Answers has no batch normalisation that a loss could ask for: take a Frozen"
    ):
        Answers().norms("stages:preact")


def test_before_its_setup_it_has_no_classifier() -> None:
    with pytest.raises(RuntimeError, match="setup must be called"):
        FrozenTeacher(net()).classifier()


def test_weights_that_are_replaced_in_place_are_heard() -> None:
    first, second = net(), Network(f"{MODULE}.Net").build(5, seed=5)
    teacher, given = ready(first), batch()
    before = teacher(given).logits
    first.load_state_dict(second.state_dict())
    after = teacher(given).logits
    with torch.no_grad():
        torch.testing.assert_close(after, second.eval()(given.image))
    assert not torch.allclose(before, after)
