"""Figures as SVG text for reports: one look, and nothing in them that points elsewhere.

It exists so that the plots of all reports agree. It draws nothing itself. Text stays text (searchable, small); it is
measured in matplotlib's own font and shown in a narrower one, so it cannot overlap. Equal figures give equal bytes: ids
come from a fixed salt, and no date is written. Only reports import it, so that nothing else pays for matplotlib.
"""

import re
import warnings
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800", "#555555")
"""Okabe and Ito (2008), told apart with any colour vision; the yellow is darker so that it shows on white."""
SANS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.labelsize": 9.5,
    "axes.labelpad": 6.0,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": GRID,
    "legend.frameon": False,
}
WIDTH_IN = 10.0


def number(value: float) -> str:
    """Write a number of any size in at most four digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Plot:
    """One figure on its way to SVG text."""

    def __init__(self, name: str, height_in: float, says: str) -> None:
        self.name = name
        self.says = says
        self.figure = Figure(figsize=(WIDTH_IN, height_in), layout=ConstrainedLayoutEngine(h_pad=0.08))
        FigureCanvasSVG(self.figure)

    def svg(self) -> str:
        """Return the figure as one <svg> element with a spoken title, without anything that points elsewhere."""
        buffer = StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with (
            rc_context({**STYLE, "svg.hashsalt": self.name, "svg.id": f"plot-{self.name}"}),
            warnings.catch_warnings(),
        ):
            # Names in any script are shown in the reader's fonts; only their width is guessed here.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r"<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r'id="(?!plot-)([^"]+)"', rf'id="{self.name}-\1"', text)
        text = re.sub(r"(url\(|href=\")#", rf"\1#{self.name}-", text)
        text = text.replace("'DejaVu Sans'", SANS)
        spoken = self.says.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        opening = re.sub(r'\s(width|height)="[^"]*pt"', "", text[: text.index(">")])
        return (
            f'{opening} role="img" aria-label="{spoken}"><title>{spoken}</title>'
            + text[text.index(">") + 1 :].rstrip()
        )
