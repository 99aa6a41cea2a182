"""A learner is built from its recipe for the data's classes and channels, if it takes images as the data gives them."""

from torch import nn

from kd_lightning.models import Network, NetworkLike, Views


def built(name: str, recipe: NetworkLike, num_classes: int, views: Views, seed: int | None = None) -> nn.Module:
    """The network of a student or a peer; a module given in a recipe's place is taken as it is.

    Args:
        name: Of the learner, for the error.
        recipe: What to build.
        num_classes: C.
        views: What the data gives.
        seed: Of the initialisation; the run's by default.

    Raises:
        ValueError: if it is normalised otherwise than the data.
    """
    if not isinstance(recipe, Network):
        return recipe
    own = recipe.normalisation()
    if own is not None and views.mean is not None and own != (views.mean, views.std):
        raise ValueError(f"{name}: normalised by {own}, but the data by {(views.mean, views.std)}: state it in data")
    return recipe.build(num_classes, views.image_shape[0], seed=seed)
