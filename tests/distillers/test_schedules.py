from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from kd_lightning.distillers import Complement, Constant, Piecewise, Ramp, Schedule, Window
from kd_lightning.length import epochs_of

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        (Constant(0.3), [0.3, 0.3, 0.3, 0.3, 0.3]),
        (Constant(-1.0), [-1.0, -1.0, -1.0, -1.0, -1.0]),
        (Ramp(2.0, epochs=4), [0.5, 1.0, 1.5, 2.0, 2.0]),
        (Ramp(2.0, epochs=1), [2.0, 2.0, 2.0, 2.0, 2.0]),
        (Window(5.0, start=1, end=3), [0.0, 5.0, 5.0, 0.0, 0.0]),
        (Window(5.0, end=2), [5.0, 5.0, 0.0, 0.0, 0.0]),
        (Window(5.0, start=3), [0.0, 0.0, 0.0, 5.0, 5.0]),
        (Window(5.0), [5.0, 5.0, 5.0, 5.0, 5.0]),
        (Piecewise([2.0], []), [2.0, 2.0, 2.0, 2.0, 2.0]),
        (Piecewise([1.0, 0.0, -3.0], [2, 4]), [1.0, 1.0, 0.0, 0.0, -3.0]),
        (Piecewise((1.0, 0.5), (1,)), [1.0, 0.5, 0.5, 0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("epochs", [None, 5, 240])
def test_weights_of_the_first_epochs(schedule: Schedule, weights: list[float], epochs: int | None) -> None:
    assert [schedule(epoch, epochs) for epoch in range(5)] == weights


@pytest.mark.parametrize(
    ("schedule", "of_4", "of_8"),
    [
        (Ramp(2.0, epochs=0.5), [1.0, 2.0, 2.0, 2.0], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]),
        (Ramp(8.0, epochs=1.0), [2.0, 4.0, 6.0, 8.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
        (Ramp(1.0, epochs=0.01), [1.0] * 4, [1.0] * 8),
        (Window(5.0, start=0.25, end=0.75), [0.0, 5.0, 5.0, 0.0], [0.0, 0.0, 5.0, 5.0, 5.0, 5.0, 0.0, 0.0]),
        (Window(5.0, start=0.75), [0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0]),
        (Window(5.0, end=0.25), [5.0, 0.0, 0.0, 0.0], [5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        (Window(5.0, start=0.0, end=1.0), [5.0] * 4, [5.0] * 8),
        (Window(5.0, start=0, end=0.5), [5.0, 5.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0]),
        (Window(5.0, start=0.0, end=3), [5.0, 5.0, 5.0, 0.0], [5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        (Piecewise([1.0, 2.0, 3.0], [0.25, 0.75]), [1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0]),
    ],
)
def test_shares_follow_the_length_of_the_training(schedule: Schedule, of_4: list[float], of_8: list[float]) -> None:
    assert [schedule(epoch, 4) for epoch in range(4)] == of_4
    assert [schedule(epoch, 8) for epoch in range(8)] == of_8


SHARES: list[Schedule] = [Ramp(1.0, 0.5), Window(1.0, 0.5), Window(1.0, end=0.5), Piecewise([1.0, 0.0], [0.5])]


@pytest.mark.parametrize("schedule", SHARES)
def test_a_share_of_a_training_of_unknown_length_is_an_error(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"^0\.5 is a share of the training, which needs trainer\.max_epochs >= 1"):
        schedule(0, None)


@pytest.mark.parametrize("at", [7, 0.1, 0.333333, 0.7, 0.99])
@pytest.mark.parametrize("epochs", [1, 2, 7, 20, 240])
def test_two_windows_hand_over_without_gap_or_overlap(at: float, epochs: int) -> None:
    first, second = Window(1.0, end=at), Window(1.0, start=at)
    assert [first(epoch, epochs) + second(epoch, epochs) for epoch in range(epochs)] == [1.0] * epochs
    assert first(0, epochs) == 1


@pytest.mark.parametrize("epochs", [0, -3])
def test_ramp_without_length_is_refused(epochs: int) -> None:
    with pytest.raises(ValueError, match=f"epochs must be >= 1, got {epochs}"):
        Ramp(1.0, epochs)


@pytest.mark.parametrize("epochs", [0.0, -0.1, 20.0])
def test_a_ramp_over_no_share_is_refused(epochs: float) -> None:
    message = rf"epochs must be an integer of epochs, or a share of the training in \(0, 1\], got {epochs}"
    with pytest.raises(ValueError, match=message):
        Ramp(1.0, epochs)


@pytest.mark.parametrize(("start", "end"), [(3, 3), (3, 2), (0.5, 0.5), (0.5, 0.25), (1.0, None)])
def test_an_empty_window_is_refused(start: float, end: float | None) -> None:
    with pytest.raises(ValueError, match=f"a window needs start < end, got start {start} and end {end}"):
        Window(1.0, start, end)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"start": -1}, "^start must be >= 0, got -1"),
        ({"end": 0}, "^end must be >= 1, got 0"),
        ({"start": -0.1}, r"^start must be an integer of epochs, or a share .* in \[0, 1\], got -0\.1"),
        ({"start": 20.0}, r"^start must be an integer of epochs, or a share .* in \[0, 1\], got 20\.0"),
        ({"end": 1.5}, r"^end must be an integer of epochs, or a share .* in \(0, 1\], got 1\.5"),
    ],
)
def test_a_window_of_no_length_is_refused(window: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(1.0, **window)


@pytest.mark.parametrize(("start", "end"), [(30, 0.5), (0.5, 30)])
def test_a_window_in_epochs_and_shares_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"both be epochs or both be shares, got {start} and {end}"):
        Window(1.0, start, end)


def test_what_is_no_schedule_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Schedule()  # type: ignore[abstract]


@pytest.mark.parametrize(("weights", "starts"), [([], []), ([1.0], [2]), ([1.0, 2.0], []), ([1.0, 2.0, 3.0], [2])])
def test_as_many_weights_as_pieces(weights: list[float], starts: list[int]) -> None:
    message = f"one more than starts, got {len(weights)} weights and {len(starts)} starts"
    with pytest.raises(ValueError, match=message):
        Piecewise(weights, starts)


@pytest.mark.parametrize("starts", [[3, 2], [2, 2], [0, 1], [-1, 4]])
def test_starts_increase_from_1_on(starts: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"starts must be increasing epochs >= 1, got \[{starts[0]}, {starts[1]}\]"):
        Piecewise([1.0, 2.0, 3.0], starts)


@pytest.mark.parametrize("starts", [[0.5, 0.25], [0.5, 0.5]])
def test_shares_increase(starts: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"starts must be increasing, got \[{starts[0]}, {starts[1]}\]"):
        Piecewise([1.0, 2.0, 3.0], starts)


@pytest.mark.parametrize("starts", [[0.0, 0.5], [0.5, 1.0], [0.5, 20.0], [0.5, 20], [1, 0.5]])
def test_starts_are_epochs_or_shares(starts: list[float]) -> None:
    with pytest.raises(ValueError, match=r"starts must all be integers of epochs, or all shares in \(0, 1\), got"):
        Piecewise([1.0, 2.0, 3.0], starts)


def test_two_pieces_are_two_windows() -> None:
    pieces, first, second = Piecewise([2.0, 5.0], [3]), Window(2.0, end=3), Window(5.0, start=3)
    assert [pieces(epoch, 9) for epoch in range(9)] == [first(epoch, 9) + second(epoch, 9) for epoch in range(9)]


@pytest.mark.parametrize("stated", ["1", "1.0", "20", "0.25", "1e-1"])
def test_a_configuration_keeps_epochs_and_shares_apart(stated: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--weight", type=float | Schedule)
    name = "kd_lightning.distillers"
    value = yaml.safe_load(stated) if "e" not in stated else float(stated)
    line = [f"--weight={name}.Ramp", "--weight.weight=1", f"--weight.epochs={stated}"]
    parsed = parser.parse_args(line)
    again = parser.parse_string(parser.dump(parsed))
    for found in (parser.instantiate(parsed).weight, parser.instantiate(again).weight):
        assert found == Ramp(1.0, value)
        assert type(found.epochs) is type(value)


# The configurations


def schedules(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of whatever takes lengths, wherever it is in a configuration."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "class_path" in node:
        yield node["class_path"].split(".")[-1], node.get("init_args", {})
    for child in children:
        yield from schedules(child)


TAKING = {
    "Ramp": ("epochs",),
    "Window": ("start", "end"),
    "Piecewise": ("starts",),
    "CurriculumTemperature": ("epochs",),
    "DINO": ("warmup_epochs",),
    "FactorTransfer": ("paraphraser_epochs",),
    "ShareCosineLR": ("warmup_epochs",),
}


def lengths(path: Path) -> list[tuple[str, Any]]:
    """Each length that a configuration states."""
    return [
        (f"{name}.{key}", length)
        for name, arguments in schedules(yaml.safe_load(path.read_text()))
        for key in TAKING.get(name, ())
        if arguments.get(key) is not None
        for length in (arguments[key] if isinstance(arguments[key], list) else [arguments[key]])
    ]


FILES = sorted(path for path in CONFIGS.glob("*/*/*.yaml") if "trainer:" in path.read_text())
# What the papers state, or their protocols, for the number of epochs that the configuration states.
STATED = {
    "cifar100/offline/ctkd.yaml": [("CurriculumTemperature.epochs", 10)],
    "cifar100/offline/dkd.yaml": [("Ramp.epochs", 20)],
    "cifar100/offline/eskd.yaml": [("Piecewise.starts", 80), ("Window.end", 80)],
    "cifar100/offline/mean_teacher.yaml": [("Ramp.epochs", 20)],
    "cifar100/offline/reviewkd.yaml": [("Ramp.epochs", 20)],
    "cifar100/online/codistillation_resnet32.yaml": [("Window.start", 20)],
    "digits/offline/mean_teacher.yaml": [("Ramp.epochs", 5)],
    "digits/online/codistillation.yaml": [("Window.start", 5)],
    "imagenet/offline/eskd_resnet34_resnet18.yaml": [("Piecewise.starts", 33), ("Window.end", 33)],
    "imagenet/online/codistillation_resnet50.yaml": [("Window.start", 37)],
}
STAGED = {"ab", "fitnets_two_stage", "fsp", "ft"}  # a stage of its own, before the training


@pytest.mark.parametrize("name", STATED)
def test_shares_are_the_stated_epochs(name: str) -> None:
    path = CONFIGS / name
    training = yaml.safe_load(path.read_text())["trainer"]["max_epochs"]
    found = lengths(path)
    assert all(isinstance(length, float) for _, length in found)
    assert [(key, epochs_of(length, training)) for key, length in found] == STATED[name]
    assert [epochs_of(length, 2 * training) for _, length in found] == [2 * epochs for _, epochs in STATED[name]]


def test_every_share_is_clearly_one_epoch_of_its_training() -> None:
    with_shares = set()
    for path in FILES:
        config = yaml.safe_load(path.read_text())
        epochs = config["trainer"].get("max_epochs")
        training = config["model"]["init_args"].get("epochs_per_generation") or epochs
        for key, length in lengths(path):
            if isinstance(length, float):
                with_shares.add(path.relative_to(CONFIGS).as_posix())
                assert abs(length * training - round(length * training)) < 0.2, (path, key)
                assert round(length * training) >= 1, (path, key)
    assert set(STATED) <= with_shares


def test_a_stage_before_the_training_has_a_length_of_its_own() -> None:
    for name in STAGED:
        found = lengths(CONFIGS / f"cifar100/offline/{name}.yaml")
        assert found
        assert all(type(length) is int and length == 30 for _, length in found), name


def test_the_complement_of_a_number_is_a_number_and_of_a_schedule_follows_it() -> None:
    assert Complement("kd").beside({"kd": Constant(0.75)}) == 0.25
    falling = Complement("kd").beside({"ce": Complement("kd"), "kd": Piecewise([1.0, 0.5, 0.0], [1, 2])})
    assert isinstance(falling, Schedule)
    assert [falling(epoch, None) for epoch in range(4)] == [0.0, 0.5, 1.0, 1.0]
    half = Complement("kd").beside({"kd": Ramp(1.0, 0.5)})
    assert isinstance(half, Schedule)
    assert [half(epoch, 4) for epoch in range(3)] == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dkd": Constant(0.5)}, r"complement of 'kd', which is no term; there are \['dkd'\]"),
        ({"kd": Complement("ce")}, "'kd', whose weight is a complement too"),
        ({"kd": Constant(1.5)}, "'kd' must weigh 0 to 1 where another term is its complement, got 1.5"),
        ({"kd": Constant(-0.5)}, "got -0.5"),
    ],
)
def test_what_has_no_complement_is_an_error(weights: dict[str, Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Complement("kd").beside(weights)


def test_a_schedule_that_leaves_0_to_1_has_no_complement_there() -> None:
    schedule = Complement("kd").beside({"kd": Piecewise([1.0, 2.0], [3])})
    assert isinstance(schedule, Schedule)
    assert schedule(2, None) == 0.0
    with pytest.raises(ValueError, match="'kd' must weigh 0 to 1 .* got 2"):
        schedule(3, None)


def test_alone_a_complement_weighs_nothing_that_is_known() -> None:
    with pytest.raises(ValueError, match="the complement of 'kd' has a weight only beside that term"):
        Complement("kd")(0, 10)
