"""The formula of a loss as a person writes it, ``0.1 · CrossEntropy + 0.9 · SoftTarget(T=4)``, from terms or YAML."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kd_lightning.distillers.criteria import DEFAULT, Criteria, Term
from kd_lightning.distillers.schedules import Complement, Schedule

SHORT = {"temperature": "T"}


def short(name: str) -> str:
    """The last part of a dotted path; the name of a network of timm's, which may hold a dot, as it is."""
    parts = name.split(".")
    return parts[-1] if len(parts) > 2 else name


def text(value: Any) -> str:
    """A value of a configuration: a number without idle digits, a class or network with its arguments.

    Arguments that are null, false, 0 or empty are left out.

    Args:
        value: A plain value; ``{class_path, init_args}``; or ``{name, kwargs, ...}`` of a network.
    """
    if isinstance(value, Mapping):
        for name, arguments in (("class_path", "init_args"), ("name", "kwargs")):
            if name in value:
                given = {key: each for key, each in (value.get(arguments) or {}).items() if each}
                inside = ", ".join(f"{SHORT.get(key, key)}={text(each)}" for key, each in given.items())
                return short(value[name]) + (f"({inside})" if inside else "")
        return "{" + ", ".join(f"{key}: {text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def looks(term: Mapping[str, Any]) -> str:
    """Where a term looks, in brackets: taps and views that are stated; nothing for what its loss states."""
    found = [f"{who} {text(term[who])}" for who in ("student", "teacher") if term.get(who) not in (DEFAULT, None)]
    views = term.get("views") or [term.get("view", DEFAULT)]
    if views != [DEFAULT]:
        found.append(f"view {' + '.join(views)}")
    if term.get("teacher_views"):
        found.append(f"teacher's view {' + '.join(term['teacher_views'])}")
    return f"[{', '.join(found)}]" if found else ""


def weight_of(term: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What a term weighs, among those of its ``criteria``; of a `Complement`, 1 less what the other one weighs."""
    weight = term.get("weight", 1.0)
    complement = isinstance(weight, Mapping) and short(str(weight.get("class_path"))) == Complement.__name__
    if complement and (tied := config.get(weight["init_args"]["of"])):
        other = tied.get("weight", 1.0)
        return f"(1 - {text(other)})" if isinstance(other, Mapping) else text(1 - other)
    return text(weight)


def formula_of(config: Mapping[str, Any]) -> str:
    """The formula of a ``criteria`` mapping of a configuration; a schedule stands in its weight's place.

    Args:
        config: Name -> term, as in ``model.init_args.criteria`` of a run's ``config.yaml``.
    """
    terms = []
    for term in config.values():
        loss, weight = term["loss"], weight_of(term, config)
        factor = "" if weight == "1" else f"{weight} · "
        terms.append(factor + (short(loss) if isinstance(loss, str) else text(loss)) + looks(term))
    return " + ".join(terms).replace(" + -", " - ")


def _as_config(value: object) -> Any:
    """What a configuration says of a value: of a loss or a schedule, the arguments that it keeps under their names."""
    if isinstance(value, nn.Module | Schedule):
        made = type(value)
        kept = {name: _as_config(getattr(value, name, None)) for name in inspect.signature(made.__init__).parameters}
        return {"class_path": made.__name__.removeprefix("FSDP"), "init_args": kept}
    if isinstance(value, list | tuple):
        return [_as_config(each) for each in value]
    return value if isinstance(value, bool | int | float | str) else None


def _stated(term: Term) -> dict[str, Any]:
    return {**vars(term), "loss": _as_config(term.loss), "weight": _as_config(term.weight)}


def formula(criteria: Criteria) -> str:
    """The formula of criteria; see `formula_of`."""
    return formula_of({name: _stated(term) for name, term in criteria.terms.items()})


def formulas_of(model: Mapping[str, Any]) -> dict[str, str]:
    """Who learns -> the formula of its loss, for each criteria of a ``model`` in a configuration.

    Args:
        model: ``{class_path, init_args}``, as in a run's ``config.yaml``.
    """
    given = model.get("init_args") or {}
    criteria, peers = given.get("criteria"), given.get("peers") or {}
    found = {
        "first generation": given.get("first"),
        "later generations" if given.get("first") else "loss": criteria,
        "generator": given.get("generator_criteria"),
    }
    for name, peer in peers.items():
        of_branches = peer.get("branch_criteria")
        found |= {f"loss of {name}": peer.get("criteria"), f"loss of {name}'s branches": of_branches}
    if str(model["class_path"]).rpartition(".")[2] == "Classifier":
        found["loss"] = {"ce": {"loss": given.get("loss") or "CrossEntropy"}}
    return {name: formula_of(terms) for name, terms in found.items() if terms}
