"""`orch compare --html`: one page of a comparison that needs no network, for a browser, a mail or an archive.

axes.py       the swept keys of points, and how each is drawn
learning.py   learning curves, as Plotly's figures
sweep.py      the sweep's plots, as Plotly's figures
document.py   all of it as HTML (the only importer of plotly, for its script)
page.py       the page, with the curves read from the runs
page.css, page.js   how it looks, and what draws the figures

Whatever a name or a value holds is shown as text: it is escaped for HTML, for scripts and for Plotly, which reads
tags in labels, and the page's policy lets a browser run the page's own two scripts only and fetch nothing.
"""

from orchestrator.report.html.axes import spread
from orchestrator.report.html.document import html
from orchestrator.report.html.learning import BEHIND, COLOURED, RUNS, Drawn

__all__ = ["BEHIND", "COLOURED", "RUNS", "Drawn", "html", "spread"]
