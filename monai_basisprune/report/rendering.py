"""What every page shares: the templates with their filters, and pictures in two sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from monai_basisprune.report import wording
from monai_basisprune.report.figures import inline_svg

__all__ = ["picture_pair", "render"]


def render(template: str, **context: object) -> str:
    """Return a page; every text is escaped, and a name that the context lacks is an error.

    Args:
        template: name of the template.
        context: what the template is given.
    """
    return _environment().get_template(template).render(context)


def picture_pair(draw: Callable[[bool], Figure], name: str) -> dict[str, Markup]:
    """Return a picture twice, for a desk and for a telephone, where shrinking would make the letters too small.

    Only SVG made by Matplotlib is marked as safe here; texts from the record are glyph outlines inside it.

    Args:
        draw: draws the figure; it is given whether the figure must be narrow.
        name: letters that begin the identifiers of this picture.
    """
    return {
        "wide": Markup(inline_svg(draw(False), f"{name}wide")),
        "narrow": Markup(inline_svg(draw(True), f"{name}narrow")),
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("monai_basisprune", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in wording.__all__:
        if name not in ("Verdict", "nothing_pruned", "verdict"):
            environment.filters[name] = getattr(wording, name)
    return environment
