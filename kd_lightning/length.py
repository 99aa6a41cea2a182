"""Lengths of what takes a part of a training: so many epochs, or a share of them."""

Length = int | float


def check_length(name: str, length: Length, least: int = 1) -> Length:
    """Let a length pass: an integer of epochs, or a float in (0, 1], a share of the training.

    Args:
        name: Of the argument, for the message.
        length: ``20`` is 20 epochs, ``0.25`` a quarter of the training, ``1.0`` all of it.
        least: 1, or 0 where a length may be nothing.

    Raises:
        ValueError: if it is less than ``least``, or a float that is no share.
    """
    if isinstance(length, int):
        if length < least:
            raise ValueError(f"{name} must be >= {least}, got {length}")
    elif not 0 <= length <= 1 or (least and not length):
        share = "(0, 1]" if least else "[0, 1]"
        raise ValueError(f"{name} must be an integer of epochs, or a share of the training in {share}, got {length}")
    return length


def epochs_of(length: Length, training: int | None) -> int:
    """A length in epochs; a share is rounded to the nearest (a half to the even one), but to nothing only if it is 0.

    Args:
        length: See `check_length`.
        training: Epochs of the training, >= 1; None where it is not known.

    Raises:
        ValueError: if it is a share of a training whose length is not known.
    """
    if isinstance(length, int):
        return length
    if training is None:
        raise ValueError(
            f"{length} is a share of the training, which needs trainer.max_epochs >= 1: give it, or state an integer "
            "number of epochs"
        )
    return max(round(length * training), 1) if length else 0
