"""What is told of classes by their source alone: an answer that does not wait for torch."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docstring_parser import Docstring, DocstringStyle, parse

PACKAGE = Path(__file__).parents[1]
# Kind -> the room that exports its classes, and the class that they descend from.
KINDS = {
    "schemes": ("distillers", "Distiller"),
    "losses": ("losses", "Loss"),
    "data modules": ("datamodules", "LightningDataModule"),
    "teachers": ("models", "Teacher"),
}


class Argument(NamedTuple):
    """An argument of a class; its default is None where it must be given."""

    name: str
    kind: str
    default: str | None
    meaning: str


def folder_of(library: str) -> Path:
    """The folder of an installed library, which is not imported.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{library} is not installed")
    return Path(spec.origin).parent


def exported(folder: Path) -> list[str]:
    """What ``__all__`` of a package names."""
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def classes(folder: Path) -> dict[str, ast.ClassDef]:
    """Every class at the top of a file in a folder."""
    files = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    return {node.name: node for file in files for node in file.body if isinstance(node, ast.ClassDef)}


def bases(node: ast.ClassDef) -> list[str]:
    """Names of the classes that a class is derived from, without their modules."""
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


def descends(node: ast.ClassDef, root: str, known: dict[str, ast.ClassDef]) -> bool:
    """Whether a class is derived from ``root``, by way of known ones."""
    return any(base == root or (base in known and descends(known[base], root, known)) for base in bases(node))


def of_kind(kind: str) -> dict[str, ast.ClassDef]:
    """The exported classes of one of `KINDS` that can be built, by name."""
    room, root = KINDS[kind]
    known = classes(PACKAGE / room)
    public = {name: known[name] for name in sorted(exported(PACKAGE / room), key=str.lower) if name in known}
    return {name: node for name, node in public.items() if descends(node, root, known) and "ABC" not in bases(node)}


def first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def parsed(text: str) -> Docstring:
    """A docstring in Google's style, taken apart."""
    return parse(text, DocstringStyle.GOOGLE)


def initializer(node: ast.ClassDef) -> ast.FunctionDef | None:
    """The ``__init__`` that a class states."""
    return next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)


def signature(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and default of each argument: of ``__init__``, or the fields of a dataclass."""
    init = initializer(node)
    if init is None:
        if any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            yield from ((ast.unparse(field.target), field.annotation, field.value) for field in fields)
        return
    given = init.args
    positional = given.args[1:]
    yield from (
        (argument.arg, argument.annotation, default)
        for argument, default in [
            *zip(positional, [*[None] * (len(positional) - len(given.defaults)), *given.defaults], strict=True),
            *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        ]
    )
    if given.kwarg is not None:
        yield f"**{given.kwarg.arg}", None, None


def arguments(node: ast.ClassDef) -> list[Argument]:
    """The arguments of a class, with what its docstring, or that of its ``__init__``, says of them."""
    texts = [ast.get_docstring(part) or "" for part in (node, initializer(node)) if part is not None]
    said = {each.arg_name.lstrip("*"): each.description for text in texts for each in parsed(text).params}
    return [
        Argument(
            name,
            ast.unparse(annotation) if annotation else "",
            ast.unparse(default) if default else None,
            " ".join((said.get(name.lstrip("*")) or "").split()),
        )
        for name, annotation, default in signature(node)
    ]
