import pytest

from kd_lightning.distillers import Constant, Piecewise, Ramp, Schedule, Window


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
def test_weights_of_the_first_epochs(schedule: Schedule, weights: list[float]) -> None:
    assert [schedule(epoch) for epoch in range(5)] == weights


def test_two_windows_hand_over_without_gap_or_overlap() -> None:
    first, second = Window(1.0, end=7), Window(1.0, start=7)
    assert [first(epoch) + second(epoch) for epoch in range(20)] == [1.0] * 20


@pytest.mark.parametrize("epochs", [0, -3])
def test_ramp_without_length_is_refused(epochs: int) -> None:
    with pytest.raises(ValueError, match=f"epochs must be >= 1, got {epochs}"):
        Ramp(1.0, epochs)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 3), (3, 2)])
def test_empty_or_negative_window_is_refused(start: int, end: int | None) -> None:
    with pytest.raises(ValueError, match=f"0 <= start < end, got start {start} and end {end}"):
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


def test_two_pieces_are_two_windows() -> None:
    pieces, first, second = Piecewise([2.0, 5.0], [3]), Window(2.0, end=3), Window(5.0, start=3)
    assert [pieces(epoch) for epoch in range(9)] == [first(epoch) + second(epoch) for epoch in range(9)]
