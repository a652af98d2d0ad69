"""The interactive charts of a report, by Bokeh, as JSON that a page embeds: curves, and the radii of each class.

The page's script colours the charts, by the theme, and shows or hides their parts: each renderer carries the tags
(part, kind, run): what it draws, a kind of `KINDS`, and the run's number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, DataRenderer, FactorRange, FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources
from scipy import special

from idrc_jax.core.json_values import Json
from idrc_jax.report.run_summaries import ClassRadii, Curve
from idrc_jax.results import metrics

KINDS = ("valid", "published", "same")  # of radii; a run has the first two or, where they are the same, the last
COLOURS = 8  # of the page; runs beyond have them again, in thinner lines
_TICKS = (0.5, 0.7, 0.9, 0.99, 0.999, 0.9999)
_TOOLS = "pan,box_zoom,reset,save"
_LOOK: Json = {
    "sizing_mode": "stretch_width",
    "toolbar_location": "above",
    "tools": _TOOLS,
    "active_drag": None,
    "background_fill_alpha": 0.0,
    "border_fill_alpha": 0.0,
    "outline_line_color": None,
    "output_backend": "canvas",
}


def library() -> str:
    """The script of BokehJS: about 1 MB, no network."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def curves(several: Sequence[tuple[str, Mapping[str, Curve | None]]], norm: str = "l2") -> Json:
    """Accuracy against radius; solid lines and bands are valid radii, dashed lines published ones.

    Args:
      several: the name of each run and its curve of each kind.
      norm: of all radii.
    """
    top = max((one.radius[-1] for _, both in several for one in both.values() if one), default=1.0)
    label = f"{norm} radius (pixels in [0, 1])"
    plot = _of_shares(top, height=430, x_axis_label=label, y_axis_label="certified accuracy")
    lines = []
    for number, (name, both) in enumerate(several):
        for kind in KINDS:
            one = both[kind]
            if one is None:
                continue
            lines.append((kind, _draw(plot, _steps(one), kind, number, name)))
    titles = {"valid": "certified", "published": "published, no certificate", "same": "certified"}
    if any(kind == "published" for kind, _ in lines):
        titles["same"] = "valid = published"
    for kind, title in titles.items():
        tips = [
            ("run", "$name"),
            ("radius", f"@radius{_places(norm)}"),
            (title, "@accuracy{0.000} [@low{0.000}, @high{0.000}]"),
        ]
        _hover(plot, [line for which, line in lines if which == kind], tips)
    plot.toolbar.logo = None
    return dict(json_item(plot))


def probabilities(several: Sequence[tuple[str, Curve | None]]) -> Json:
    """The share of images against p_lower, whose probits are the curves' radii.

    Args:
      several: the name of each run and its curve, None where it has no p_lower.
    """
    top = max((one.radius[-1] for _, one in several if one), default=1.0)
    plot = _of_shares(top, height=360, x_axis_label="p (scale of the normal quantile)", y_axis_label="share of images")
    ticks: Any = {float(special.ndtri(p)): f"{p:g}" for p in _TICKS}
    plot.xaxis.ticker = FixedTicker(ticks=list(ticks))
    plot.xaxis.major_label_overrides = ticks
    lines = []
    for number, (name, one) in enumerate(several):
        if one is None:
            continue
        columns = _steps(one)
        lines.append(_draw(plot, columns | {"p": special.ndtr(columns["radius"])}, "same", number, name))
    tips = [("run", "$name"), ("p", "@p{0.0000}"), ("share", "@accuracy{0.000} [@low{0.000}, @high{0.000}]")]
    _hover(plot, lines, tips)
    plot.toolbar.logo = None
    return dict(json_item(plot))


def classes(kinds: Mapping[str, Sequence[ClassRadii] | None], norm: str = "l2") -> Json:
    """The radii of the rightly predicted images of each class: 5 to 95 % a line, 25 to 75 % a bar, the median a dot."""
    known = [one for kind in KINDS for one in kinds[kind] or () if one.quantiles]
    rows = next(kinds[kind] for kind in KINDS if kinds[kind]) or ()
    # Names may coincide, as factors must not.
    factors = [f"{one.name}" if [each.name for each in rows].count(one.name) == 1 else f"{one.name} ({number})"
               for number, one in enumerate(rows)]  # fmt: skip
    top = max((one.quantiles[-1] for one in known if one.quantiles), default=1.0)
    plot = figure(
        height=90 + 26 * max(len(factors), 1),
        y_range=FactorRange(factors=factors[::-1]),
        x_range=Range1d(start=0, end=1.05 * top or 1.0),
        x_axis_label=f"{norm} radius (pixels in [0, 1])",
        **_LOOK,
    )
    for kind in KINDS:
        chosen = [(factor, one) for factor, one in zip(factors, kinds[kind] or (), strict=False) if one.quantiles]
        if not chosen:
            continue
        columns: Json = {"name": [factor for factor, _ in chosen]}
        columns |= {key: [asdict(one)[key] for _, one in chosen] for key in ("images", "right", "wrong", "abstained")}
        for position, key in enumerate(("q05", "q25", "q50", "q75", "q95")):
            columns[key] = [one.quantiles[position] for _, one in chosen if one.quantiles]
        source = ColumnDataSource(columns)
        whisker = plot.segment("q05", "name", "q95", "name", source=source, line_width=1.5)
        bar = plot.hbar(y="name", left="q25", right="q75", height=0.55, source=source, fill_alpha=0.45, line_width=1)
        middle = plot.scatter("q50", "name", source=source, size=8, marker="diamond")
        for renderer, part in ((whisker, "line"), (bar, "bar"), (middle, "point")):
            renderer.tags = [part, kind, 1 if kind == "published" else 0]
        tips = [
            ("class", "@name"),
            ("median", f"@q50{_places(norm)}"),
            ("25 to 75 %", f"@q25{_places(norm)} to @q75{_places(norm)}"),
            ("5 to 95 %", f"@q05{_places(norm)} to @q95{_places(norm)}"),
            ("right / wrong / abstained", "@right / @wrong / @abstained of @images"),
        ]
        plot.add_tools(HoverTool(renderers=[bar, middle], tooltips=tips, visible=False))
    plot.toolbar.logo = None
    plot.ygrid.grid_line_color = None
    return dict(json_item(plot))


def _of_shares(top: float, **look: Any) -> figure:
    """An empty chart of shares, from 0 to 1, against radii up to `top`."""
    return figure(
        x_range=Range1d(start=0, end=top, bounds=(0, top)),
        y_range=Range1d(start=0, end=1, bounds=(0, 1)),
        **look,
        **_LOOK,
    )


def _draw(plot: figure, columns: Json, kind: str, number: int, name: str) -> DataRenderer:
    """A run's curve, with its band but for published radii; returns the line."""
    source = ColumnDataSource(columns)
    if kind != "published":
        plot.varea("radius", "low", "high", source=source, fill_alpha=0.15).tags = ["band", kind, number]
    dash = "dashed" if kind == "published" else "solid"
    width = 2.5 if number < COLOURS else 1.2
    line = plot.line("radius", "accuracy", source=source, line_width=width, line_dash=dash, name=name)
    line.tags = ["line", kind, number]
    return line


def _places(norm: str) -> str:
    """How Bokeh writes a radius."""
    return f"{{0.{'0' * metrics.PLACES[norm]}}}"


def _hover(plot: figure, lines: list[DataRenderer], tips: list[tuple[str, str]]) -> None:
    plot.add_tools(HoverTool(renderers=lines, tooltips=tips, line_policy="nearest", visible=False))


def _steps(one: Curve) -> Json:
    """A falling staircase as a polyline: from each radius to the next one the next one's values hold."""
    made = {"radius": np.repeat(one.radius, 2)[:-1], "accuracy": np.repeat(one.accuracy, 2)[1:]}
    for name, rounding in (("low", math.floor), ("high", math.ceil)):
        made[name] = np.repeat([metrics.bound(end, rounding) for end in getattr(one, name)], 2)[1:]
    return {name: np.asarray(values, np.float32) for name, values in made.items()}
