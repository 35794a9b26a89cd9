"""Sphinx' settings; docs/website/build.py copies this file beside the pages that it lays out."""

from unrolled import __version__

project = "Unrolled"
author = "the Unrolled authors"
copyright = author  # Sphinx' own name for it
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "api_text"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["examples/**"]
# Anchors as a code host makes them: what the pages' links are written for.
myst_heading_anchors = 6
suppress_warnings = ["myst.header"]  # a page of a code host may begin below its first heading

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
# In docstrings, as in Markdown, what stands between single backticks is code.
default_role = "literal"
smartquotes = False  # two hyphens are the beginning of a flag
add_module_names = False

html_theme = "furo"
html_title = "Unrolled"
html_static_path = ["_static"]
html_css_files = ["unrolled.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"
