"""Sphinx settings of the site that `make docs` builds; a broken link or reference is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plantmodels import __version__

project = "plantmodels"
author = "the plantmodels authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"plantmodels {__version__}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#2c6e49",
        "color-brand-content": "#2c6e49",
        "color-api-name": "#2c6e49",
    },
    "dark_css_variables": {
        "color-brand-primary": "#74c69d",
        "color-brand-content": "#74c69d",
        "color-api-name": "#74c69d",
    },
}

myst_heading_anchors = 3  # links to headings work here as on GitHub

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

nitpicky = True
nitpick_ignore_regex = [
    # types in signatures: libraries outside this site, and internal modules, which have no page
    ("py:.*", r"(?!plantmodels\.[A-Z]|mlflow_plugins\.[A-Z]).*"),
]
