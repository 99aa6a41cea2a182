import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of the pictures that are drawn from here on."""
    drawn: list[Axes] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: object, **options: object) -> None:
        drawn.extend(figure.axes)
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", saved)
    return drawn
