"""What the report's pictures have in common: one colour, marker and dash per method, and two files per picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rarlhf.figures import FAINT, PALETTE, STYLE
from lightning_rarlhf.one_move import in_one_move

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MUTED = "#555555"
_COLOURS = (*PALETTE, "#E69F00", "#56B4E9", "#000000")
"""told apart by colour-blind eyes (Okabe and Ito, 2008)"""
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1.2)))
_MOST_BANDS = 6
_ROW, _HANDLE, _LETTER = 0.21, 0.85, 0.085
"""inches in a legend: of a row, of a label's handle and gaps, of a letter"""
_STYLE: Any = STYLE | {
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one method is drawn in every picture."""

    colour: str
    marker: str
    dash: Any


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """One look per label, no two of the first eight of one colour or marker.

    Of the first 32, no two share both colour and dash, nor both colour and marker.
    """
    return {
        label: Look(
            colour=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)],
            dash=_DASHES[(number + number // len(_COLOURS)) % len(_DASHES)],
        )
        for number, label in enumerate(labels)
    }


def with_band(labels: Sequence[str]) -> Sequence[str]:
    """Those whose band is drawn: all, or of more than six the first alone, since so many bands hide one another."""
    return labels if len(labels) <= _MOST_BANDS else labels[:1]


def save(draw: Callable[[], Figure], stem: Path) -> list[Path]:
    """Draw in the report's style and write ``<stem>.png`` and ``<stem>.pdf``, each in one move."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = []
    with rc_context(_STYLE):
        figure = draw()
        FigureCanvasAgg(figure)
        for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            with in_one_move(path) as partial:
                figure.savefig(partial, format=kind, metadata=metadata)
            written.append(path)
    return written


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure, in inches, with its headings; axes belong into ``top=1 - 1.0 / height`` and below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    left = 0.6 / width
    figure.text(left, 1 - 0.30 / height, title, fontsize=13, weight="bold", va="center")
    figure.text(left, 1 - 0.58 / height, subtitle, fontsize=9, color=MUTED, va="center")
    return figure


def tidy(axes: Axes) -> None:
    """A faint grid behind the data and no tick marks."""
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """One legend for all axes, at the lower edge, where no data are; rows beyond the first make the figure higher.

    Call it last: what the figure holds keeps its size in inches.
    """
    handles, labels = axes.get_legend_handles_labels()
    fitting = int(figure.get_figwidth() / (_HANDLE + _LETTER * max(map(len, labels))))
    columns = max(1, min(columns, len(labels), fitting))
    _grow(figure, _ROW * (-(-len(labels) // columns) - 1))
    figure.legend(handles, labels, loc="lower center", ncols=columns, handlelength=3.4)


def _grow(figure: Figure, inches: float) -> None:
    """Add room at the lower edge."""
    before = figure.get_figheight()
    after = before + inches

    def moved(y: float) -> float:
        return (y * before + inches) / after

    for text in figure.texts:
        text.set_y(moved(text.get_position()[1]))
    figure.subplots_adjust(bottom=moved(figure.subplotpars.bottom), top=moved(figure.subplotpars.top))
    figure.set_figheight(after)
