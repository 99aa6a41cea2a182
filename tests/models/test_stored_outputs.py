from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import (
    EnsembleTeacher,
    FrozenTeacher,
    MovingAverageTeacher,
    Network,
    StoredOutputs,
    Views,
    save_weights,
)

CLASSES, SAMPLES = 5, 12


@dataclass
class Data:
    """Named views as a data module has them."""

    facts: Mapping[str, str] = field(default_factory=lambda: {"data.images": "1"})
    names: Sequence[str] = ("default",)
    repeats: int = 1
    shown: int | None = None
    trained: int = SAMPLES

    def samples(self) -> int:
        return SAMPLES

    def training_rows(self) -> Tensor:
        return torch.arange(self.trained)

    def view_names(self) -> Sequence[str]:
        return self.names

    def view_facts(self) -> Mapping[str, str]:
        return self.facts

    def repeat_views_after(self, epochs: int) -> None:
        self.shown = epochs


class Counting(FrozenTeacher):
    """Counts what it is asked, and how often it is built."""

    asked, built = 0, 0

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        self.built += 1
        super().setup(num_classes, views, taps)

    def __call__(self, batch: Batch, view: str = "default"):  # type: ignore[no-untyped-def]
        self.asked += len(batch)
        return super().__call__(batch, view)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(Network("cifar_resnet8").build(CLASSES, seed=1), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def counting(weights: Path) -> Counting:
    return Counting(Network("cifar_resnet8", weights=str(weights)))


def stored(
    teacher: FrozenTeacher | EnsembleTeacher | MovingAverageTeacher, path: Path, data: Data | None = None,
    views: int = 2, taps: Sequence[str] = (), **options: int | bool,
) -> StoredOutputs:  # fmt: skip
    made = StoredOutputs(teacher, views, str(path / "x.outputs"), **options)  # type: ignore[arg-type]
    views_of_data = Views((3, 8, 8), named=Data() if data is None else data)
    made.setup(CLASSES, views_of_data, taps)
    made.begin(views_of_data)
    return made


def batch(*rows: int, number: int = 0, views: Sequence[str] = ("default",)) -> Batch:
    """The images of a name are always the same."""
    index = torch.tensor(rows)

    def image(row: int, view: str) -> Tensor:
        generator = torch.Generator().manual_seed(100 * row + 7 * number + len(view))
        return torch.randn(3, 8, 8, generator=generator)

    images = {view: torch.stack([image(row, view) for row in rows]) for view in views}
    return Batch(images, torch.zeros(len(rows), dtype=torch.int64), index, torch.full_like(index, number))


def test_what_was_said_once_is_not_asked_again(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept, given = stored(teacher, tmp_path), batch(3, 1, 4)
    first = kept(given).logits
    assert (teacher.built, teacher.asked) == (1, 3)
    assert torch.equal(first, FrozenTeacher.__call__(teacher, given).logits.half().float())
    assert torch.equal(kept(given).logits, first)
    assert torch.equal(kept(batch(1, 3)).logits, first[[1, 0]])
    assert teacher.asked == 3


def test_of_a_batch_only_the_missing_are_asked(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept = stored(teacher, tmp_path)
    kept(batch(1, 2))
    both = kept(batch(0, 2, 1, 5)).logits
    assert teacher.asked == 4
    alone = FrozenTeacher.__call__(teacher, batch(0, 2, 1, 5)).logits
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-3)


def test_another_run_reads_without_building_the_teacher(weights: Path, tmp_path: Path) -> None:
    first = stored(counting(weights), tmp_path)
    answers = first(batch(*range(SAMPLES))).logits
    teacher = counting(weights)
    again = stored(teacher, tmp_path)
    assert torch.equal(again(batch(*range(SAMPLES))).logits, answers)
    assert (teacher.built, teacher.asked) == (0, 0)


def test_views_numbers_and_names_have_rows_of_their_own(weights: Path, tmp_path: Path) -> None:
    teacher, names = counting(weights), ("default", "weak")
    kept = stored(teacher, tmp_path, Data(names=names), views=2)
    rows = range(SAMPLES)
    heard = {(v, n): kept(batch(*rows, number=n, views=names), v).logits for v in names for n in (0, 1)}
    assert teacher.asked == 4 * SAMPLES
    for (view, number), logits in heard.items():
        given = batch(*rows, number=number, views=names)
        assert torch.equal(kept(given, view).logits, logits)
        torch.testing.assert_close(logits, FrozenTeacher.__call__(teacher, given, view).logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(heard["default", 0], heard["default", 1])
    assert not torch.equal(heard["default", 0], heard["weak", 0])


def test_the_data_shows_as_many_views(weights: Path, tmp_path: Path) -> None:
    data = Data(repeats=3)
    kept = stored(counting(weights), tmp_path, data, views=4)
    assert data.shown == 4
    assert kept.store is not None
    assert kept.store.layout.rows == 4 * 3 * SAMPLES


def test_a_full_file_is_kept_on_the_device(weights: Path, tmp_path: Path) -> None:
    teacher, trained = counting(weights), 8
    kept = stored(teacher, tmp_path, Data(trained=trained), views=2)
    answers = [kept(batch(*range(trained))).logits]
    assert kept._near is None
    answers.append(kept(batch(*range(trained), number=1)).logits)
    assert kept._near is not None  # as many answers as there are samples: it has looked
    again = stored(counting(weights), tmp_path, Data(trained=trained), views=2)
    again.notices()
    assert again._near is not None  # the held-out rows are not there, nor are they needed
    assert torch.equal(again(batch(*range(trained), number=1)).logits, answers[1])


def test_a_damaged_row_is_asked_anew(weights: Path, tmp_path: Path) -> None:
    kept = stored(counting(weights), tmp_path, views=1)
    answers = kept(batch(*range(SAMPLES))).logits
    assert kept.store is not None
    kept.store._data[4, 3] ^= 1
    kept.store.flush()
    teacher = counting(weights)
    again = stored(teacher, tmp_path, views=1)
    again.notices()
    assert again._near is None
    with pytest.warns(UserWarning, match=r"^1 rows of .*x.outputs did not match their checksums"):
        told = again(batch(*range(SAMPLES))).logits
    torch.testing.assert_close(told, answers, rtol=1e-3, atol=1e-3)
    assert teacher.asked == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("weights", r"teacher.weights: the file has [0-9a-f]{60}…, this run"),
        ("data", "data.images: the file has 1, this run 2"),
        ("views", "views: the file has 2, this run 3"),
        ("top_k", "format: the file has float16, this run top 2 float16"),
    ],
)
def test_a_file_of_something_else_is_refused(weights: Path, tmp_path: Path, change: str, said: str) -> None:
    stored(counting(weights), tmp_path)
    if change == "weights":
        save_weights(Network("cifar_resnet8").build(CLASSES, seed=2), weights)
    data = Data({"data.images": "2"}) if change == "data" else Data()
    options = {"top_k": 2} if change == "top_k" else {}
    with pytest.raises(ValueError, match=said):
        stored(counting(weights), tmp_path, data, views=3 if change == "views" else 2, **options)


def test_without_a_path_each_content_has_a_file(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for facts in ({"data.images": "1"}, {"data.images": "2"}, {"data.images": "1"}):
        made = StoredOutputs(counting(weights), 1)
        made.setup(CLASSES, Views((3, 8, 8)), [])
        made.begin(Views((3, 8, 8), named=Data(facts)))
    assert len(list(tmp_path.glob("stored_outputs/*.outputs"))) == 2


def test_taps_are_the_teachers_own(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept, given = stored(teacher, tmp_path, taps=["embedding", "logits"]), batch(3, 1)
    direct = FrozenTeacher.__call__(teacher, given)
    assert kept.plan().shapes["embedding"] == (2, 64)
    for _ in range(2):
        answer = kept(given)
        assert torch.equal(answer.logits, direct.logits.half().float())
        assert torch.equal(answer.taps["embedding"], direct.taps["embedding"])  # type: ignore[arg-type]
    assert teacher.asked == 4
    assert "the teacher answers every batch, for its taps embedding are not stored" in kept.notices()


def test_the_notice_says_how_large_it_is(weights: Path, tmp_path: Path) -> None:
    kept = stored(counting(weights), tmp_path)
    kept(batch(0, 1, 2))
    (line,) = kept.notices()
    assert line.startswith(f"stored outputs: {tmp_path / 'x.outputs'}, 12 samples x 2 views x 5 classes (float16), ")
    assert line.endswith("kB, 12% there")


def test_who_was_examined_is_not_examined_again(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept = stored(teacher, tmp_path)
    assert kept.members() == {"teacher": teacher}
    kept.examined({"teacher": (0.75, 200)})
    again = counting(weights)
    assert stored(again, tmp_path).remembered() == {"teacher": (0.75, 200)}
    assert again.built == 0


def test_who_was_not_examined_gets_ready_for_it(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    assert stored(teacher, tmp_path).remembered() == {}
    assert teacher.built == 1
    unchecked = Counting(Network("cifar_resnet8", weights=str(weights)), check=False)
    assert stored(unchecked, tmp_path).remembered() == {}
    assert unchecked.built == 0


def test_each_training_opens_the_file_for_its_own_data(weights: Path, tmp_path: Path) -> None:
    kept, other = stored(counting(weights), tmp_path, views=3), Data()
    kept.begin(Views((3, 8, 8), named=other))
    assert other.shown == 3
    with pytest.raises(ValueError, match=r"data.images: the file has 1, this run 2"):
        kept.begin(Views((3, 8, 8), named=Data({"data.images": "2"})))
    kept.begin(Views((3, 8, 8)))
    assert kept.store is None


def test_the_members_of_an_ensemble_are_not_stored(weights: Path) -> None:
    kept = StoredOutputs(counting(weights), 1)
    with pytest.raises(ValueError, match="teachers must not be StoredOutputs, got 'b': store the ensemble instead"):
        EnsembleTeacher({"a": counting(weights), "b": kept})


def test_an_ensemble_can_be_stored(weights: Path, tmp_path: Path) -> None:
    pair = EnsembleTeacher({"a": counting(weights), "b": counting(weights)})
    kept, given = stored(pair, tmp_path), batch(0, 1)
    torch.testing.assert_close(kept(given).logits, pair(given).logits, rtol=1e-3, atol=1e-3)
    other = EnsembleTeacher({"a": counting(weights), "b": counting(weights)}, weights={"a": 2.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"teacher.weights: the file has \[0.5, 0.5\], this run \[0.66"):
        stored(other, tmp_path)


def test_a_teacher_that_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a MovingAverageTeacher does not say what its answers depend on"):
        stored(MovingAverageTeacher(), tmp_path)


def test_a_module_is_known_by_its_weights(tmp_path: Path) -> None:
    network = Network("cifar_resnet8").build(CLASSES, seed=1)
    stored(FrozenTeacher(network), tmp_path)
    stored(FrozenTeacher(Network("cifar_resnet8").build(CLASSES, seed=1)), tmp_path)
    nn.init.zeros_(network.fc.bias[:1])  # type: ignore[union-attr,index,arg-type]
    with pytest.raises(ValueError, match=r"teacher.weights: the file has"):
        stored(FrozenTeacher(network), tmp_path)


@pytest.mark.parametrize(
    ("temperature", "allowed", "passes"),
    [(1.0, False, True), (4.0, False, False), (4.0, True, True), (None, False, False), (None, True, True)],
)
def test_top_k_is_for_a_temperature_of_1(temperature: float | None, allowed: bool, passes: bool, weights: Path) -> None:
    kept = StoredOutputs(counting(weights), 1, top_k=2, allow_top_k_above_1=allowed)
    if passes:
        kept.require_temperatures({"kd": temperature})
    else:
        with pytest.raises(ValueError, match=r"teacher.top_k 2 .* criteria.kd has (4.0|none): leave top_k out"):
            kept.require_temperatures({"other": 1.0, "kd": temperature})


def test_top_k_answers_with_log_probabilities(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    answer = stored(teacher, tmp_path, top_k=4)(batch(0, 1, 2)).logits
    expected = FrozenTeacher.__call__(teacher, batch(0, 1, 2)).logits.softmax(1)
    torch.testing.assert_close(answer.softmax(1), expected, rtol=2e-3, atol=1e-3)


def test_data_without_names_is_refused(weights: Path) -> None:
    kept = StoredOutputs(counting(weights), 1)
    kept.setup(CLASSES, Views((3, 8, 8)), [])
    with pytest.raises(ValueError, match="StoredOutputs needs a data module whose views have names"):
        kept.notices()


def test_a_test_asks_the_teacher_itself(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept = StoredOutputs(teacher, 1, str(tmp_path / "x.outputs"))
    kept.setup(CLASSES, Views((3, 8, 8)), [])
    given = batch(0, 1)
    assert torch.equal(kept.unlabelled(given).logits, FrozenTeacher.__call__(teacher, given).logits)
    assert not (tmp_path / "x.outputs").exists()


@pytest.mark.parametrize(
    ("options", "said"), [({"views": 0}, "views must be >= 1, got 0"), ({"top_k": 0}, "top_k must be >= 1, got 0")]
)
def test_arguments_are_checked(options: dict[str, int], said: str, weights: Path) -> None:
    with pytest.raises(ValueError, match=said):
        StoredOutputs(counting(weights), **{"views": 1, **options})  # type: ignore[arg-type]


def test_the_first_to_ask_may_be_a_test_in_inference_mode(weights: Path, tmp_path: Path) -> None:
    teacher = counting(weights)
    kept, given = StoredOutputs(teacher, 1), batch(0, 1)
    kept.setup(CLASSES, Views((3, 8, 8)), [])
    with torch.inference_mode():
        inside = kept.unlabelled(given).logits
    assert not any(parameter.is_inference() for parameter in teacher.network.parameters())  # type: ignore[union-attr]
    torch.testing.assert_close(kept.unlabelled(given).logits, inside)
