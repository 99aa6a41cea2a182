from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.export import choose
from kd_lightning.export.choosing import checked, names

Take = Callable[[str], Any]

PARTS = {
    "vit": [],
    "deit": ["class_head", "distillation_head", "both_softmax", "both_logits"],
    "dml": ["best", "a", "b", "ensemble"],
    "one": ["best", "one", "one_1", "one_2", "one_3"],
    "exits": ["best", "net", "net_1", "net_2", "net_ensemble"],
    "ban": ["generation_0", "generation_1", "generation_2", "ensemble_2", "ensemble_3"],
}
OURS = {"one": "BranchedNetwork", "net_1": "MultiExitNetwork", "net_2": "MultiExitNetwork"}


@pytest.mark.parametrize("run", PARTS)
def test_each_part_alone_answers_as_it_is_examined(taken: Take, run: str) -> None:
    seen = taken(run)
    assert names(seen.origin.module) == PARTS[run]
    for name, part in seen.parts.items():
        expected = seen.answers.student if name in (None, "ensemble") else seen.answers.parts[name]
        torch.testing.assert_close(part.network(seen.answers.batch.image), expected, rtol=1e-4, atol=1e-5)
        assert part.name == (name or "")


@pytest.mark.parametrize("run", PARTS)
def test_a_part_is_a_copy_for_inference(taken: Take, run: str) -> None:
    seen = taken(run)
    own = {value.data_ptr() for value in seen.origin.module.parameters()}
    for part in seen.parts.values():
        assert not any(module.training for module in part.network.modules())
        for value in part.network.parameters():
            assert (value.device.type, value.dtype, value.requires_grad) == ("cpu", torch.float32, False)
            assert value.is_contiguous()
            assert value.data_ptr() not in own


def test_the_average_is_taken_where_it_is_evaluated(taken: Take, runs: Path) -> None:
    averages = torch.load(runs / "runs/e/vit/checkpoints/last.ckpt", weights_only=True)["ema"]
    state = taken("vit").parts[None].network.state_dict()
    assert all(torch.equal(value, averages[f"module.{key}"]) for key, value in state.items())


@pytest.mark.parametrize("run", ["vit", "dml", "one", "exits", "ban"])
def test_what_is_one_network_has_a_recipe_that_its_state_fills(taken: Take, run: str) -> None:
    seen = taken(run)
    for name, part in seen.parts.items():
        assert (part.recipe is None) == bool(part.combined) == ("ensemble" in (name or ""))
        if part.recipe is not None:
            made = part.recipe.build(10, 1).eval()
            made.load_state_dict(part.network.state_dict())
            image = seen.answers.batch.image
            torch.testing.assert_close(made(image), part.network(image))
            plain = "deit_tiny_patch16_224" if run == "vit" else "cifar_resnet8"
            assert part.recipe.name == (f"kd_lightning.models.{OURS[name]}" if name in OURS else plain)


def test_the_best_is_the_peer_or_branch_with_the_largest_top1(taken: Take) -> None:
    dml, one = taken("dml").origin, taken("one").origin
    assert choose(dml._replace(top1={"a": 0.25, "b": 0.5}), "best").name == "b"
    assert choose(one._replace(top1={"one": 0.4, "one_1": 0.3, "one_2": 0.5, "one_3": 0.1}), "best").name == "one_2"
    with pytest.raises(ValueError, match="--part best: the checkpoint knows no val/top1 of its peers: name one"):
        choose(dml, "best")


def test_a_run_of_several_networks_asks_which(taken: Take) -> None:
    with pytest.raises(ValueError, match="several networks: say which by --part; it has best, a, b, ensemble$"):
        choose(taken("dml").origin, None)


def test_an_unknown_part() -> None:
    with pytest.raises(ValueError, match="no part 'clas_head'; it has class_head, one; did you mean class_head"):
        checked("clas_head", ["class_head", "one"], False)
    with pytest.raises(ValueError, match="no part 'x'; it has none: leave --part out$"):
        checked("x", [], False)
    checked(None, [], False)


def test_two_heads_are_a_state_dict_only_by_the_mean_of_their_logits(taken: Take) -> None:
    parts = taken("deit").parts
    assert parts["both_logits"].combined == ""
    assert all("--part both_logits" in part.combined for name, part in parts.items() if name != "both_logits")
