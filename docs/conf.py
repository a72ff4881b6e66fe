"""The site: `make docs`."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref

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


def unlink_folders(app: Any, doctree: Any) -> None:
    """Leave the words of links to folders that are there, which the site has no page for; others stay a warning."""
    page = Path(app.srcdir, app.env.docname).parent
    for node in list(doctree.findall(pending_xref)):
        # a page's own links begin at the page; those of CHANGELOG.md, which a page includes, at the repository
        folders = (base / node["reftarget"] for base in (page, page.parent))
        if node["reftype"] == "myst" and any(folder.is_dir() for folder in folders):
            node.replace_self(node.children)


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("doctree-read", unlink_folders)
