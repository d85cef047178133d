"""Sphinx configuration: MyST pages, autodoc, and a reference made from the components."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate_reference

import advdiff_core

project = "advdiff"
author = "the advdiff authors"
copyright = "the advdiff authors, Apache-2.0"
release = advdiff_core.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "reference/README.md"]
templates_path: list[str] = []

# Docstrings are Google style; `x` in them is code, and types stay in the annotations.
default_role = "literal"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False

html_theme = "furo"
html_title = "advdiff"
html_show_copyright = False


def setup(app: object) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    app.connect(
        "builder-inited", lambda app: generate_reference.write(Path(app.srcdir, "reference"))
    )
