"""The site of the documentation: what Sphinx reads; `make docs` builds it."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

from kd_lightning import __version__

logger = getLogger(__name__)

project = "kd_lightning"
release = __version__
copyright = "the authors of kd_lightning, Apache 2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "templates"]
templates_path = ["templates"]
html_theme = "furo"
html_title = f"kd_lightning {__version__}"
html_math_renderer = "mathml"
highlight_language = "text"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2  # docs/losses.md links to the heading of each loss

default_role = "named"
autosummary_ignore_module_all = False  # a room's public names are its __all__
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


class Named(PyXRefRole):
    """A name in single backticks: a link to what is called so, else code."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Find a class by its name alone; a function or method is looked for where it is named."""
        refnode["reftype"] = "obj"
        if target[:1].isupper():
            refnode["refspecific"] = True
        return super().process_link(env, refnode, has_explicit_title, title, target)


def visit_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which needs no script."""
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logger.warning("%s", error, location=node)
    raise nodes.SkipNode


def escape_bars(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Let |x| in a formula be what it says, where reStructuredText would look for a substitution called x."""
    for number, line in enumerate(lines):
        code = line.split("``")
        code[::2] = [text.replace("|", r"\|") for text in code[::2]]
        lines[number] = "``".join(code)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the role, the writer of formulas, and what docstrings need."""
    app.add_role_to_domain("py", "named", Named())
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", escape_bars)
    return {"parallel_read_safe": True}
