import copy
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.batch import Batch, as_batch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.views import View
from kd_lightning.distillers import (
    DML,
    KDCL,
    ONE,
    Codistillation,
    Collaboration,
    OnlineDistiller,
    Peer,
    Term,
    Window,
)
from kd_lightning.distillers.codistillation import GroupedDDP
from kd_lightning.losses import CrossEntropy, Hint, Loss, SoftTarget
from kd_lightning.models import BranchedNetwork, Network

T = 2.0


class Net(nn.Module):
    """A hidden layer that a tap reaches, then the classifier."""

    def __init__(self, width: int = 6, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.scale * self.body(image))
        return logits


class Counting(CrossEntropy):
    """Knows how often all its copies were asked."""

    calls: ClassVar[list[int]] = []

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        self.calls.append(1)
        return super().forward(student, teacher, target)


class Watch(pl.Callback):
    """Keeps the batches, the peers before each step, and the terms of each step."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.before: list[dict[str, nn.Module]] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Networks that are asked directly do not go through what `memory_format` guards.
        batch = as_batch(batch)
        images = {name: each.clone(memory_format=torch.contiguous_format) for name, each in batch.images.items()}
        self.batches.append(Batch(images, batch.target, batch.index, batch.number))
        networks: Any = pl_module.student
        self.before.append({name: copy.deepcopy(network) for name, network in networks.networks.items()})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        meter: Any = pl_module.meter
        sums, counts = meter.sums.tolist()
        self.terms.append({n: s / c for n, s, c in zip(meter.names, sums, counts, strict=True) if c})
        meter.clear()


def formula() -> dict[str, Term]:
    return {"ce": Term(CrossEntropy(), 1.0, teacher=None), "kd": Term(SoftTarget(T), 0.5)}


def peers(count: int = 3) -> dict[str, Peer]:
    return {name: Peer(Net(6 + index)) for index, name in enumerate("abcd"[:count])}


def distiller(collaboration: Collaboration | None = None, **options: Any) -> OnlineDistiller:
    stated: dict[str, Any] = {
        "peers": peers(),
        "criteria": formula(),
        "optimizer": lambda p: torch.optim.SGD(p, 0.1),
        "collaboration": DML() if collaboration is None else collaboration,
    }
    return OnlineDistiller(**(stated | options))


def fitted(folder: Path, module: OnlineDistiller, steps: int = 1, data: Any = None, **options: Any) -> Watch:
    watch = Watch()
    stated: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": steps, "limit_val_batches": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[watch],
        **stated,
    )
    trainer.fit(module, DigitsDataModule(64) if data is None else data)
    assert trainer.global_step == steps * stated["max_epochs"]  # optimizer updates, whatever the number of peers
    return watch


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(teacher || student)."""
    p_t = (teacher / T).softmax(1)
    return T**2 * (p_t * (p_t.log() - (student / T).log_softmax(1))).sum(1).mean()


def network_of(module: OnlineDistiller, name: str) -> nn.Module:
    student: Any = module.student
    network: nn.Module = student.networks[name]
    return network


def stepped(networks: dict[str, nn.Module], batch: Batch, loss: Any, lr: float = 0.1) -> None:
    """One plain step on a loss of all logits."""
    logits = {name: network(batch.image) for name, network in networks.items()}
    loss(logits).backward()
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad


def assert_same(module: OnlineDistiller, networks: dict[str, nn.Module]) -> None:
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(network_of(module, name).state_dict()[key], value, msg=f"{name} {key}")


def test_a_step_of_dml_is_that_of_the_formula_with_constant_teachers(tmp_path: Path) -> None:
    module = distiller()
    watch = fitted(tmp_path, module)
    networks, target = watch.before[0], watch.batches[0].target

    def loss(z: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for name in z:
            rest = [kl(z[name], z[other].detach()) for other in z if other != name]
            total = total + F.cross_entropy(z[name], target) + 0.5 * sum(rest) / 2
        return total

    with torch.no_grad():
        z = {name: network(watch.batches[0].image) for name, network in networks.items()}
        assert watch.terms[0]["loss"] == pytest.approx(loss(z).item(), rel=1e-5)
        assert watch.terms[0]["b_ce"] == pytest.approx(F.cross_entropy(z["b"], target).item(), rel=1e-5)
        expected = (kl(z["b"], z["a"]) + kl(z["b"], z["c"])).item() / 2
        assert watch.terms[0]["b_kd"] == pytest.approx(expected, rel=1e-4)
    assert set(watch.terms[0]) == {f"{name}_{term}" for name in "abc" for term in ("ce", "kd")} | {"loss"}
    stepped(networks, watch.batches[0], loss)
    assert_same(module, networks)


def test_a_step_of_kdcl_is_that_of_the_formula(tmp_path: Path) -> None:
    module = distiller(KDCL("naive"))
    watch = fitted(tmp_path, module)
    networks, target = watch.before[0], watch.batches[0].target

    def loss(z: dict[str, Tensor]) -> Tensor:
        ensemble = torch.stack(list(z.values())).mean(0).detach()
        return torch.stack([F.cross_entropy(each, target) + 0.5 * kl(each, ensemble) for each in z.values()]).sum()

    stepped(networks, watch.batches[0], loss)
    assert_same(module, networks)


def test_a_step_of_one_is_that_of_the_formula(tmp_path: Path) -> None:
    recipe = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
    one = BranchedNetwork(recipe, "stages.2", 2, num_classes=10, in_chans=1)
    module = distiller(ONE(), peers={"one": Peer(one)})
    watch = fitted(tmp_path, module)
    before, batch = watch.before[0]["one"], watch.batches[0]
    assert isinstance(before, BranchedNetwork)
    shared = before.trunk(batch.image)
    z = [branch(shared) for branch in before.branches]
    gate = before.gate(shared.mean(dim=(2, 3)))
    ensemble = sum(gate[:, k, None] * each for k, each in enumerate(z))
    assert isinstance(ensemble, Tensor)
    loss = F.cross_entropy(ensemble, batch.target)
    for each in z:
        loss = loss + F.cross_entropy(each, batch.target) + 0.5 * kl(each, ensemble.detach())
    assert watch.terms[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert set(watch.terms[0]) == {"one_ce", "one_1_ce", "one_1_kd", "one_2_ce", "one_2_kd", "loss"}
    loss.backward()
    for name, parameter in before.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(one.get_parameter(name), parameter - 0.1 * parameter.grad, msg=name)


def test_every_peer_the_ensemble_and_the_agreement_are_reported(tmp_path: Path) -> None:
    module = distiller()
    fitted(tmp_path, module, steps=4)
    images = next(iter(module.trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    figures = module.trainer.callback_metrics
    with torch.no_grad():
        z = {name: network_of(module, name)(images.image) for name in "abc"}
    decided = {name: each.argmax(1) for name, each in z.items()}
    for name in "abc":
        assert figures[f"val/{name}_top1"] == pytest.approx((decided[name] == images.target).float().mean().item())
    ensemble = torch.stack(list(z.values())).mean(0).argmax(1)
    assert figures["val/top1"] == pytest.approx((ensemble == images.target).float().mean().item())
    pairs = [(decided[x] == decided[y]).float().mean().item() for x, y in ("ab", "ac", "bc")]
    assert figures["val/agreement"] == pytest.approx(sum(pairs) / 3)
    results = module.trainer.test(module, DigitsDataModule(64), verbose=False)[0]
    assert {"test/top1", "test/a_top1", "test/c_ece", "test/agreement"} <= results.keys()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_for_each_peer_apart(tmp_path: Path, algorithm: str) -> None:
    loud = {"a": Peer(Net(6)), "b": Peer(Net(6, scale=100.0))}
    alone = {"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget(), 0.0)}
    module = distiller(peers=loud, criteria=alone)
    options: dict[str, Any] = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    watch = fitted(tmp_path, module, **options)
    moved = {}
    for name, network in watch.before[0].items():
        network.zero_grad()
        F.cross_entropy(network(watch.batches[0].image), watch.batches[0].target).backward()
        now = dict(network_of(module, name).named_parameters())
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        moved[name] = torch.cat([((p - now[key]) / 0.1).flatten() for key, p in network.named_parameters()]).detach()
        bounded = gradient.clamp(-1, 1) if algorithm == "value" else gradient * min(1.0, 1 / gradient.norm().item())
        torch.testing.assert_close(moved[name], bounded, rtol=1e-3, atol=1e-4)
    assert moved["a"].norm() < 1 - 1e-3 or algorithm == "value"  # not touched by the other's bound


def test_each_peer_has_its_groups_in_one_optimizer(tmp_path: Path) -> None:
    for decayed, each in (("all", 1), ("matrices", 2)):
        module = distiller(weight_decay_on=decayed)
        fitted(tmp_path, module)
        assert len(module.trainer.optimizers) == 1
        groups = module.trainer.optimizers[0].param_groups
        assert [group["peer"] for group in groups] == [name for name in "abc" for _ in range(each)]
        owned = [p for group in groups if group["peer"] == "b" for p in group["params"]]
        assert set(owned) == set(network_of(module, "b").parameters())


def test_a_term_without_a_teacher_is_computed_once_for_each_peer(tmp_path: Path) -> None:
    Counting.calls.clear()
    fitted(tmp_path, distiller(criteria=formula() | {"ce": Term(Counting(), teacher=None)}))
    assert len(Counting.calls) == 3


def test_a_peer_may_have_criteria_of_its_own_and_need_no_others(tmp_path: Path) -> None:
    some = peers(2)
    some["b"].criteria = {"plain": Term(CrossEntropy(), teacher=None)}
    watch = fitted(tmp_path, distiller(peers=some))
    assert set(watch.terms[0]) == {"a_ce", "a_kd", "b_plain", "loss"}


def test_each_peer_learns_on_its_own_view(tmp_path: Path) -> None:
    some = {"a": Peer(Net(6)), "b": Peer(Net(7), view="second")}
    views = {"default": View(crop_padding=1, flip=False), "second": View(crop_padding=2, flip=False)}
    watch = fitted(tmp_path, distiller(peers=some), data=DigitsDataModule(64, views=views))
    batch, networks = watch.batches[0], watch.before[0]
    with torch.no_grad():
        a, b = networks["a"](batch.images["default"]), networks["b"](batch.images["second"])
        assert watch.terms[0]["b_ce"] == pytest.approx(F.cross_entropy(b, batch.target).item(), rel=1e-5)
        assert watch.terms[0]["a_kd"] == pytest.approx(kl(a, b).item(), rel=1e-4)
    with pytest.raises(ValueError, match=r"peer b looks at the view 'second', the batch has \['default'\]"):
        fitted(tmp_path, distiller(peers=some))


def test_adapters_are_there_for_each_pair_and_train_with_their_learner(tmp_path: Path) -> None:
    hint = Term(Hint("linear"), student="body", teacher="body")
    module = distiller(criteria={"ce": Term(CrossEntropy(), teacher=None), "hint": hint})
    watch = fitted(tmp_path, module, steps=3)
    adapters = {key: p for key, p in module.named_parameters() if key.startswith("criteria.")}
    pairs = {key.split(".")[2] for key in adapters}
    assert pairs == {f"{one}_hint_from_{other}" for one in "abc" for other in "abc" if one != other}
    groups = module.trainer.optimizers[0].param_groups
    assert set(groups[0]["params"]) >= {p for key, p in adapters.items() if ".a_hint_" in key}
    assert watch.terms[2]["a_hint"] < watch.terms[0]["a_hint"]


class Curious(Loss):
    """Asks for both classifiers."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_classifier", "student_classifier"})
    student_tap: ClassVar[str] = "embedding"
    teacher_tap: ClassVar[str] = "embedding"

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, **told: Any) -> Tensor:
        theirs: Tensor = told["teacher_classifier"](teacher)
        mine: Tensor = told["student_classifier"](student)
        return F.cross_entropy(theirs, target) + 0.0 * mine.sum()


def test_a_peers_classifier_is_known_and_not_trained_by_who_learns(tmp_path: Path) -> None:
    module = distiller(peers=peers(2), criteria={"curious": Term(Curious())})
    watch = fitted(tmp_path, module)
    with torch.no_grad():
        expected = F.cross_entropy(watch.before[0]["b"](watch.batches[0].image), watch.batches[0].target)
    assert watch.terms[0]["a_curious"] == pytest.approx(expected.item(), rel=1e-5)
    assert_same(module, watch.before[0])
    with pytest.raises(ValueError, match="an ensemble|logits only"):
        fitted(tmp_path, distiller(KDCL(), criteria={"curious": Term(Curious())}))


def test_codistillation_learns_from_copies_of_the_last_exchange(tmp_path: Path) -> None:
    module = distiller(Codistillation(every=2), peers=peers(2))
    watch = fitted(tmp_path, module, steps=4)
    for step, exchanged in enumerate((0, 0, 2, 2)):
        batch = watch.batches[step]
        with torch.no_grad():
            a, b = watch.before[step]["a"](batch.image), watch.before[exchanged]["b"](batch.image)
            assert watch.terms[step]["a_kd"] == pytest.approx(kl(a, b).item(), rel=1e-3, abs=1e-6)
    assert not any("copies" in key for key in module.state_dict())


def test_codistillation_by_predictions_teaches_in_every_nth_step(tmp_path: Path) -> None:
    watch = fitted(tmp_path, distiller(Codistillation(every=3, exchange="predictions")), steps=4)
    assert [("a_kd" in terms) for terms in watch.terms] == [True, False, False, True]
    alone = {"kd": Term(SoftTarget())}
    with pytest.raises(ValueError, match="nobody teaches in this step: give every peer a term without a teacher"):
        fitted(tmp_path, distiller(Codistillation(3, "predictions"), criteria=alone), steps=2)


def test_peers_can_learn_alone_first(tmp_path: Path) -> None:
    terms = formula() | {"kd": Term(SoftTarget(), Window(1.0, start=1))}
    watch = fitted(tmp_path, distiller(criteria=terms), max_epochs=2)
    assert [("a_kd" in terms) for terms in watch.terms] == [False, True]


def test_equal_recipes_of_peers_start_apart(tmp_path: Path) -> None:
    recipe = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
    module = distiller(peers={"a": Peer(recipe), "b": Peer(recipe)})
    watch = fitted(tmp_path, module)
    one, other = (network.get_parameter("fc.weight") for network in watch.before[0].values())
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": {}}, "peers must have at least one peer, got none"),
        ({"peers": {"a.b": Peer(Net())}}, r"peers must have names of letters, digits and underscores, got \['a.b'\]"),
        ({"criteria": None}, r"peers \['a', 'b', 'c'\] have no criteria"),
    ],
)
def test_faults_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": {"a": Peer(Net())}}, r"DML needs at least 2 peers, got \['a'\]"),
        (
            {"peers": {"a": Peer(nn.Sequential(nn.Flatten(), nn.Linear(64, 7))), "b": Peer(Net())}},
            "peer a has 7 classes, the data 10",
        ),
        ({"collaboration": ONE()}, "ONE needs branches, and peer 'a' has none"),
        (
            {
                "peers": {"a": Peer(Net()), "a_b": Peer(Net())},
                "criteria": {"b_c": Term(CrossEntropy(), teacher=None), "c": Term(CrossEntropy(), teacher=None)},
            },
            "two terms one name, got 'a_b_c' twice",
        ),
    ],
)
def test_faults_are_named_when_the_peers_are_built(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, distiller(**options))


def test_a_term_of_several_views_is_refused(tmp_path: Path) -> None:
    criteria = {"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget(), views=["default", "second"])}
    with pytest.raises(ValueError, match=r"criteria.kd: among peers a term has one view, got views \['default', 'sec"):
        fitted(tmp_path, distiller(criteria=criteria))


def test_groups_are_for_peers_that_are_trained_in_groups() -> None:
    with pytest.raises(ValueError, match="Codistillation in 2 processes needs trainer.strategy"):
        together = Codistillation()
        together.world = 2
        together.require(object())
    strategy = GroupedDDP()
    strategy._lightning_module = pl.LightningModule()
    with pytest.raises(ValueError, match="GroupedDDP is for an OnlineDistiller, got LightningModule"):
        strategy.configure_ddp()
