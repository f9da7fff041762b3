"""Sphinx configuration."""

import monai_basisprune

project = "monai_basisprune"
author = "The developers of monai_basisprune"
copyright = f"2026, {author}"
release = version = monai_basisprune.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"monai_basisprune {release}"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_heading_anchors = 3
nitpicky = False
