"""The site: `make docs`."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project = "lightning_ckptkd"
author = "the authors of lightning_ckptkd"
release = version_of("lightning-ckptkd")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lightning_ckptkd {release}"
html_static_path: list[str] = []

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

# Links to the classes of torch and Lightning need the network, and a build is to work without: DOCS_ONLINE=1 make docs
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }


def folder_of_the_repository(app: Any, env: Any, node: Any, content: Any) -> Any:
    """The words of a link to a folder that is there, which the site has no page for; others stay a warning."""
    target = Path(app.srcdir, node.get("refdoc", ""), "..", node.get("reftarget", ""))
    return content if node.get("reftype") == "myst" and target.resolve().is_dir() else None


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("missing-reference", folder_of_the_repository)
