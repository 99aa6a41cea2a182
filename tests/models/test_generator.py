import pytest
import torch

from kd_lightning.models import Views
from kd_lightning.models.generator import Generator, GeneratorRecipe, doublings

MEAN, STD = (0.5, 0.2, 0.1), (0.25, 0.5, 1.0)


@pytest.mark.parametrize(("side", "times"), [(8, 1), (10, 1), (14, 1), (16, 2), (28, 2), (32, 3), (64, 4)])
def test_doublings(side: int, times: int) -> None:
    assert doublings(side) == times


@pytest.mark.parametrize("side", [4, 6, 7, 9, 18, 36, 62, 128])
def test_sides_that_cannot_be_made(side: int) -> None:
    with pytest.raises(ValueError, match=rf"from 8 to 64 pixels, got {side}$"):
        doublings(side)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (2, 28, 28)])
def test_images_have_the_datas_shape_and_normalisation(shape: tuple[int, int, int]) -> None:
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    generator = Generator(shape, mean, std, latent=7, width=4)
    image = generator(10 * torch.randn(5, 7), torch.zeros(5, dtype=torch.int64))
    assert image.shape == (5, *shape)
    pixels = image * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    assert 0 <= pixels.min() < 0.4 < 0.6 < pixels.max() <= 1
    torch.testing.assert_close(generator.pixels(image), pixels)


def test_every_parameter_is_trained_and_nothing_else_is_remembered() -> None:
    generator = Generator((1, 8, 8), (0.5,), (0.5,), latent=7, width=4)
    generator(torch.randn(5, 7), torch.zeros(5, dtype=torch.int64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert generator.state_dict().keys() == dict(generator.named_parameters()).keys()


def test_a_label_counts_where_the_generator_is_conditional() -> None:
    views, noise = Views((1, 8, 8), (0.5,), (0.5,)), torch.randn(4, 7)
    zero, one = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 2])
    deaf = GeneratorRecipe(7, 4).build(views, 3, 0)
    assert torch.equal(deaf(noise, zero), deaf(noise, one))
    hearing = GeneratorRecipe(7, 4, conditional=True).build(views, 3, 0)
    assert not torch.equal(hearing(noise, zero), hearing(noise, one))


def test_the_initialisation_is_a_function_of_the_seed() -> None:
    views = Views((1, 8, 8), (0.5,), (0.5,))
    before = torch.get_rng_state()
    one, same, other = (GeneratorRecipe(7, 4).build(views, 3, seed).project.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_faults() -> None:
    with pytest.raises(ValueError, match=r"must be square, got 8x16 pixels$"):
        Generator((1, 8, 16), (0.5,), (0.5,))
    with pytest.raises(ValueError, match=r"one number for each of 3 channels, got \(0.5,\) and \(0.5,\)$"):
        Generator((3, 8, 8), (0.5,), (0.5,))
    with pytest.raises(ValueError, match=r"^generator.latent must be >= 1, got 0$"):
        GeneratorRecipe(latent=0)
    with pytest.raises(ValueError, match="needs the data's mean and std"):
        GeneratorRecipe().build(Views((1, 8, 8)), 3, 0)
