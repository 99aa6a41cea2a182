import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_lightning.length import Length, check_length, epochs_of


@pytest.mark.parametrize(
    ("length", "training", "epochs"),
    [
        (20, 240, 20),
        (20, None, 20),
        (1, 240, 1),
        (0, None, 0),
        (300, 240, 300),  # an integer knows nothing of the training
        (1.0, 240, 240),
        (0.25, 240, 60),
        (0.0, 240, 0),
        (0.0833, 240, 20),  # 19.992
        (0.34, 10, 3),
        (0.36, 10, 4),
        (0.25, 10, 2),  # 2.5: a half to the even one
        (0.35, 10, 4),  # 3.5
        (0.001, 240, 1),  # not nothing
        (0.4, 1, 1),
    ],
)
def test_a_length_in_epochs(length: Length, training: int | None, epochs: int) -> None:
    assert epochs_of(length, training) == epochs


@given(share=st.floats(0, 1), less=st.floats(0, 1), training=st.integers(1, 1000))
def test_a_share_is_within_half_an_epoch_and_keeps_the_order(share: float, less: float, training: int) -> None:
    epochs = epochs_of(share, training)
    assert abs(epochs - share * training) <= 0.5 or (epochs == 1 and 0 < share * training < 0.5)
    assert 0 <= epochs <= training
    assert (epochs == 0) == (share == 0)
    assert epochs_of(min(share, less), training) <= epochs


@pytest.mark.parametrize("share", [0.25, 1.0, 0.0])
def test_a_share_of_what_is_not_known_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match=rf"^{share} is a share of the training, which needs trainer\.max_epochs >= 1"):
        epochs_of(share, None)


@pytest.mark.parametrize(("length", "least"), [(1, 1), (400, 1), (0.25, 1), (1.0, 1), (1e-9, 1), (0, 0), (0.0, 0)])
def test_lengths_pass_as_they_are(length: Length, least: int) -> None:
    assert check_length("epochs", length, least) is length


@pytest.mark.parametrize(("length", "least"), [(0, 1), (-3, 1), (-1, 0)])
def test_too_few_epochs_are_an_error(length: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"^warmup must be >= {least}, got {length}$"):
        check_length("warmup", length, least)


@pytest.mark.parametrize(
    ("length", "least", "share"),
    [(0.0, 1, r"\(0, 1\]"), (20.0, 1, r"\(0, 1\]"), (-0.1, 0, r"\[0, 1\]"), (math.nan, 0, r"\[0, 1\]")],
)
def test_a_float_that_is_no_share_is_an_error(length: float, least: int, share: str) -> None:
    message = f"^warmup must be an integer of epochs, or a share of the training in {share}, got {length}$"
    with pytest.raises(ValueError, match=message):
        check_length("warmup", length, least)
