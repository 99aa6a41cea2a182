from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import DML, ONE, OnlineDistiller, Peer, Term
from kd_lightning.distillers.collaboration import Learner
from kd_lightning.distillers.peers import Peers, plans_of
from kd_lightning.losses import CrossEntropy, Hint, SoftTarget
from kd_lightning.models import MultiExitNetwork, Network

T, ALPHA, LAMBDA = 3.0, 0.3, 0.03
RECIPE = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})


def network() -> MultiExitNetwork:
    return MultiExitNetwork(RECIPE, num_classes=10, in_chans=1)


def terms(tap: str = "last_map") -> dict[str, Term]:
    return {
        "ce": Term(CrossEntropy(), 1 - ALPHA, teacher=None),
        "kd": Term(SoftTarget(T), ALPHA),
        "hint": Term(Hint("none"), LAMBDA, student=tap, teacher=tap),
    }


def distiller(net: MultiExitNetwork, tap: str = "last_map", **peers: Peer) -> OnlineDistiller:
    own = {"ce": Term(CrossEntropy(), teacher=None)}
    peer = Peer(net, criteria=own, branch_criteria=terms(tap))
    return OnlineDistiller({"net": peer, **peers}, ONE(), lambda p: torch.optim.SGD(p, 0.1))


class Watch(pl.Callback):
    """Keeps the batch, the state before the step, and the terms of the step."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        module: Any = pl_module
        self.batch = batch
        self.before = {k: v.clone() for k, v in module.student.networks["net"].state_dict().items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        meter: Any = pl_module.meter
        sums, counts = meter.sums.tolist()
        self.terms = {name: s / c for name, s, c in zip(meter.names, sums, counts, strict=True) if c}


def fitted(folder: Path, module: OnlineDistiller, steps: int = 1) -> Watch:
    watch = Watch()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[watch],
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=1,
    )
    trainer.fit(module, DigitsDataModule(64))
    return watch


def unrolled(net: MultiExitNetwork, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and last maps of the exits and, last, of the network, layer by layer."""
    plain: Any = net.network
    exits: Any = [net.exits[str(number)] for number in (1, 2)]
    stages = [plain.stages[0](plain.stem(image))]
    stages += [plain.stages[1](stages[0])]
    maps = [layers.bottleneck(stage) for layers, stage in zip(exits, stages, strict=True)]
    logits = [layers.fc(each.mean(dim=(2, 3))) for layers, each in zip(exits, maps, strict=True)]
    maps.append(plain.stages[2](stages[1]))
    return [*logits, plain.fc(maps[2].mean(dim=(2, 3)))], maps


def paper(logits: list[Tensor], features: list[Tensor], target: Tensor) -> dict[str, Tensor]:
    """The terms of the paper; no gradient flows into the deepest as a teacher."""
    found = {"net_ce": F.cross_entropy(logits[-1], target)}
    p = (logits[-1].detach() / T).softmax(1)
    for number, (z, feature) in enumerate(zip(logits[:-1], features[:-1], strict=True), start=1):
        found[f"net_{number}_ce"] = F.cross_entropy(z, target)
        found[f"net_{number}_kd"] = T**2 * (p * (p.log() - (z / T).log_softmax(1))).sum(1).mean()
        found[f"net_{number}_hint"] = (feature - features[-1].detach()).square().mean()
    return found


@pytest.mark.parametrize("tap", ["last_map", "last_stage", "embedding"])
def test_a_step_is_that_of_the_formula(tmp_path: Path, tap: str) -> None:
    net, twin = network(), network()
    watch = fitted(tmp_path, distiller(net, tap))
    twin.load_state_dict(watch.before)
    image = watch.batch.image.clone(memory_format=torch.contiguous_format)  # see `memory_format`
    logits, maps = unrolled(twin.train(), image)
    features = [each.mean(dim=(2, 3)) for each in maps] if tap == "embedding" else maps
    expected = paper(logits, features, watch.batch.target)
    weights = {"ce": 1 - ALPHA, "kd": ALPHA, "hint": LAMBDA}
    loss = torch.stack(
        [(1.0 if name == "net_ce" else weights[name.split("_")[2]]) * value for name, value in expected.items()]
    ).sum()
    assert watch.terms == pytest.approx(
        {name: value.item() for name, value in expected.items()} | {"loss": loss.item()}, rel=1e-4, abs=1e-6
    )
    loss.backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            net.get_parameter(name), parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6, msg=name
        )


def test_every_exit_the_deepest_and_the_ensemble_are_reported(tmp_path: Path) -> None:
    net = network()
    module = distiller(net)
    fitted(tmp_path, module, steps=4)
    figures = module.trainer.callback_metrics
    batch = next(iter(module.trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    with torch.no_grad():
        logits, _ = unrolled(net.eval(), batch.image)

    def top1(z: Tensor) -> float:
        return (z.argmax(1) == batch.target).float().mean().item()

    ensemble = (logits[0] + logits[1] + logits[2]) / 3
    expected = {"net_1": logits[0], "net_2": logits[1], "net": logits[2], "net_ensemble": ensemble}
    for name, z in expected.items():
        assert figures[f"val/{name}_top1"] == pytest.approx(top1(z)), name
        assert figures[f"val/{name}_loss"] == pytest.approx(F.cross_entropy(z, batch.target).item(), rel=1e-4), name
    assert figures["val/top1"] == figures["val/net_top1"]
    results = module.trainer.test(module, DigitsDataModule(64), verbose=False)[0]
    for name in expected:
        assert {f"test/{name}_top1", f"test/{name}_ece"} <= results.keys()
    assert results["test/loss"] == results["test/net_loss"]


def test_exits_and_the_plain_network_are_what_best_is_taken_from(tmp_path: Path) -> None:
    module = distiller(network())
    fitted(tmp_path, module)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["peers_top1"].keys() == {"net", "net_1", "net_2"}  # an ensemble is nobody's weights


def test_plans_of_exits_are_their_own_and_the_networks_else() -> None:
    net = network()
    deepest, first, second = Peers({"net": net}).learners()
    asked = {deepest: {"embedding"}, first: {"embedding", "stage:1"}, second: {"last_map"}}
    plans = plans_of(net, asked, (1, 8, 8))
    assert plans["net"].names["embedding"] == "network.fc:in"
    assert plans["net_1"].names["embedding"] == "exits.1.fc:in"
    assert plans["net_1"].names["stage:1"] == "network.stages.0"
    assert plans["net_2"].names["last_map"] == "exits.2.bottleneck"
    assert plans["net_2"].shapes["last_map"] == (2, 8, 2, 2)
    assert {"exits.1", "exits.2"} <= set(plans["net"].submodules())
    assert set(plans["net"].submodules()) >= set(plans["net_1"].submodules()) | set(plans["net_2"].submodules())


def test_a_peer_without_exits_has_no_ensemble_and_teaches_nobody() -> None:
    peers = Peers({"net": network(), "alone": MultiExitNetwork(RECIPE, only=1, num_classes=10, in_chans=1)})
    assert peers.ensembles() == {"net_ensemble": ["net", "net_1", "net_2"]}
    assert [learner.name for learner in peers.learners()] == ["net", "net_1", "net_2", "alone"]
    with pytest.raises(ValueError, match="peer 'alone' has none: make it a BranchedNetwork or MultiExitNetwork"):
        ONE().teachers_of(Learner("alone", "alone"), peers.learners())


def test_branches_learn_by_the_peers_terms_where_they_have_none(tmp_path: Path) -> None:
    shared = {"ce": Term(CrossEntropy(), teacher=None), "kd": Term(SoftTarget(T))}
    module = OnlineDistiller({"net": Peer(network())}, ONE(), lambda p: torch.optim.SGD(p, 0.1), shared)
    watch = fitted(tmp_path, module)
    assert set(watch.terms) == {"net_ce", "net_1_ce", "net_1_kd", "net_2_ce", "net_2_kd", "loss"}
    with pytest.raises(ValueError, match=r"peers \['net'\] have no criteria"):
        OnlineDistiller({"net": Peer(network(), branch_criteria=terms())}, DML(), lambda p: torch.optim.SGD(p, 0.1))
