"""Charts as inline SVG: drawn from numbers, coloured by the page's style sheet, with a title that is read aloud."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

WIDTH = 360  # as wide as a narrow phone, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 10, 40
FEW = 20  # images in a bin below which its dot stands apart
LETTER = 6.3  # pixels, about, of a letter at the charts' text size

Point = tuple[float, float]


class Plot:
    """Two axes and what is drawn on them; series are coloured by number (`s0`, `s1`, ... in the style sheet)."""

    def __init__(
        self, title: str, about: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str],
        height: int = 240,
    ):  # fmt: skip
        self.title = title
        self.about = about
        self.x, self.y = x, y
        self.labels = labels
        self.height = height
        self.marks: list[Markup] = []
        self.named: list[tuple[str, str]] = []

    def at(self, point: Point) -> Point:
        """Data -> pixels."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = (point[0] - x0) / ((x1 - x0) or 1)
        up = (point[1] - y0) / ((y1 - y0) or 1)
        top = TOP + self.legend_height
        return LEFT + across * (WIDTH - LEFT - RIGHT), top + (1 - up) * (self.height - BOTTOM - TOP)

    @property
    def legend_height(self) -> int:
        """Pixels above the chart that name the series."""
        return 18 * len(self.legend_rows())

    def legend_rows(self) -> list[list[tuple[str, str, float]]]:
        """Rows of (kind, name, where it begins)."""
        rows: list[list[tuple[str, str, float]]] = []
        x = float(WIDTH)
        for kind, name in self.named:
            wide = 26 + LETTER * len(name) + 12
            if x + wide > WIDTH:
                rows.append([])
                x = LEFT
            rows[-1].append((kind, name, x))
            x += wide
        return rows

    def name(self, kind: str, name: str) -> "Plot":
        """A series' name for the legend; to be said before anything is drawn."""
        self.named.append((kind, name))
        return self

    def line(self, points: Sequence[Point], kind: str) -> "Plot":
        """A line through these points."""
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
            self.marks.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, path))
        return self

    def dot(self, point: Point, kind: str, radius: float = 3.2, says: str = "") -> "Plot":
        """A dot; `says` appears when it is pointed at."""
        x, y = self.at(point)
        self.marks.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
                kind, x, y, radius, says
            )
        )
        return self

    def whisker(self, x: float, interval: Sequence[float], kind: str) -> "Plot":
        """An interval as a vertical stroke."""
        (px, bottom), (_, top) = self.at((x, interval[0])), self.at((x, interval[1]))
        self.marks.append(
            Markup('<line class="whisker {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                kind, px, px, bottom, top
            )
        )
        return self

    def bar(self, left: float, right: float, height: float, kind: str, says: str = "") -> "Plot":
        """A bar from the axis up."""
        (x0, y0), (x1, y1) = self.at((left, self.y[0])), self.at((right, height))
        self.marks.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(kind, x0, y1, max(x1 - x0 - 1, 0.5), max(y0 - y1, 0), says)
        )
        return self

    def svg(self, x_ticks: Sequence[tuple[float, str]] = (), y_ticks: Sequence[tuple[float, str]] = ()) -> Markup:
        """The whole chart."""
        parts = [
            Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
                WIDTH, self.height + self.legend_height, f"{self.title}. {self.about}"
            )
        ]
        for row, names in enumerate(self.legend_rows()):
            y = 12 + 18 * row
            for kind, name, x in names:
                parts.append(
                    Markup('<line class="line {}" x1="{:.0f}" x2="{:.0f}" y1="{}" y2="{}"/>').format(
                        kind, x, x + 18, y, y
                    )
                )
                parts.append(Markup('<text x="{:.0f}" y="{}">{}</text>').format(x + 23, y + 4, name))
        for value, text in y_ticks or [(v, short(v)) for v in steps(*self.y)]:
            _, y1 = self.at((self.x[0], value))
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    LEFT, WIDTH - RIGHT, y1, y1
                )
            )
            parts.append(
                Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    LEFT - 6, y1 + 4, text
                )
            )
        floor = self.height + self.legend_height - BOTTOM
        for value, text in x_ticks or [(v, short(v)) for v in steps(*self.x)]:
            px, _ = self.at((value, self.y[0]))
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    px, floor + 15, text
                )
            )
        parts += self.marks
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (LEFT + WIDTH - RIGHT) / 2, floor + 33, self.labels[0]
            )
        )
        middle = (floor + TOP + self.legend_height) / 2
        parts.append(
            Markup('<text transform="translate(12 {:.0f}) rotate(-90)" text-anchor="middle">{}</text>').format(
                middle, self.labels[1]
            )
        )
        parts.append(Markup("</svg>"))
        return Markup("").join(parts)


def steps(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high, about as many as wanted."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    power: float = 10.0 ** (len(str(int(raw))) - 1) if raw >= 1 else 1.0
    while power > raw:
        power /= 10
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = -(-low // step) * step
    return [round(first + i * step, 10) for i in range(wanted * 2 + 2) if first + i * step <= high + step * 1e-6]


def short(value: float) -> str:
    """A tick's number."""
    return f"{value:.4g}"


def percents(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks in per cent."""
    return [(v, f"{100 * v:.3g}\u00a0%") for v in steps(low, high)]


def reliability_chart(calibration: dict[str, Any], which: str) -> Markup:
    """Confidence against accuracy, with intervals; the diagonal is perfect."""
    bins = calibration[which]["bins"]
    most = max((row["images"] for row in bins), default=1)
    plot = Plot(
        f"Reliability {which} the temperature",
        f"Mean confidence and accuracy in {len(bins)} bins; expected calibration error {calibration[which]['ece']:.3f}",
        (0, 1), (0, 1), ("confidence", "accuracy"),
    )  # fmt: skip
    plot.name("s4 dashed", "perfect").name("s0", which)
    for row in bins:
        plot.bar(row["from"], row["to"], 0.16 * row["images"] / most, "faint", f"{row['images']:,} images")
    plot.line([(0, 0), (1, 1)], "s4 dashed")
    for row in bins:
        plot.whisker(row["confidence"], row["interval"], "s0" if row["images"] >= FEW else "s4 thin")
    plot.line([(row["confidence"], row["accuracy"]) for row in bins if row["images"] >= FEW], "s0")
    for row in bins:
        says = f"confidence {row['confidence']:.2f}, accuracy {row['accuracy']:.2f}, {row['images']:,} images"
        plot.dot((row["confidence"], row["accuracy"]), "s0" if row["images"] >= FEW else "s4", says=says)
    return plot.svg(percents(0, 1), percents(0, 1))


def risk_chart(abstain: dict[str, Any]) -> Markup:
    """Error among the answered images against the part that is answered."""
    curve = abstain["curve"]
    highest = max(*curve["risk"], 0.01)
    plot = Plot(
        "Risk and coverage", f"Error at full coverage {curve['risk'][-1]:.3f}, on average {curve['area']:.3f}",
        (0, 1), (0, highest * 1.05), ("part of the images that is answered", "error among them"),
    )  # fmt: skip
    plot.name("s0", "error").name("s1", "thresholds chosen beforehand" if abstain["thresholds"] else "")
    plot.named = [named for named in plot.named if named[1]]
    plot.line(list(zip(curve["coverage"], curve["risk"], strict=True)), "s0")
    for row in abstain["thresholds"]:
        if row["accuracy"] is not None:
            says = f"wanted {row['wanted']:.0%}: answers {row['coverage']:.1%}, right in {row['accuracy']:.1%}"
            plot.dot((row["coverage"], 1 - row["accuracy"]), "s1", 4.5, says)
    return plot.svg(percents(0, 1), percents(0, highest * 1.05))


def curve_chart(rows: list[dict[str, Any]], what: str) -> Markup:
    """Loss or accuracy by epoch, of whatever was measured."""
    series = {
        split: [(row["epoch"], row[f"{split}_{what}"]) for row in rows if row.get(f"{split}_{what}") is not None]
        for split in ("train", "validation", "test")
    }
    series = {name: points for name, points in series.items() if points}
    values = [y for points in series.values() for _, y in points] or [0]
    low, high = (min(0, *values), max(values) * 1.05) if what == "loss" else (0, 1)
    epochs = [row["epoch"] for row in rows]
    last = ", ".join(f"{name} {points[-1][1]:.3f}" for name, points in series.items())
    plot = Plot(
        what.capitalize(), f"By epoch; at the end {last}",
        (min(epochs), max(*epochs, min(epochs) + 1)), (low, high), ("epoch", what),
    )  # fmt: skip
    kinds = {"train": "s4", "validation": "s0", "test": "s1"}
    for name in series:
        plot.name(kinds[name], name)
    for name, points in series.items():
        plot.line(points, kinds[name])
        if len(points) < 25:
            for point in points:
                plot.dot(point, kinds[name], 2.4, f"epoch {point[0]}: {point[1]:.3f}")
    whole = [(float(v), str(int(v))) for v in steps(min(epochs), max(*epochs, min(epochs) + 1)) if v == int(v)]
    return plot.svg(whole, percents(0, 1) if what == "accuracy" else ())


def deletion_chart(table: dict[str, Any]) -> Markup:
    """The probability while patches are left out, the most relevant first: each method and chance."""
    left = table["remaining"]
    shown = {name: row for name, row in table["methods"].items() if not row["control"] or name == "random"}
    plot = Plot(
        "Deletion", "Probability of the class while patches go, the most relevant first; lower is better",
        (0, 1), (0, 1), ("part of the patches left out", "probability"),
    )  # fmt: skip
    kinds = {name: f"s{i}" for i, name in enumerate(n for n in shown if n != "random")} | {"random": "s4 dashed"}
    for name in shown:
        plot.name(kinds[name], name)
    for name, row in shown.items():
        curve = row["curves"].get("deletion", [])
        gone = [1 - part for part in left[: len(curve)]]
        plot.line(list(zip(gone, curve, strict=True)), kinds[name])
    return plot.svg(percents(0, 1), percents(0, 1))


def fifths_chart(name: str, rows: list[dict[str, Any]], accuracy: float) -> Markup:
    """Accuracy in parts of the images, each with its interval, and the accuracy of all."""
    low = max(0.0, min(row["interval"][0] for row in rows) - 0.05)
    low = float(int(low * 10)) / 10
    plot = Plot(
        f"Accuracy by {name}",
        "; ".join(f"{row['from']:.3g} to {row['to']:.3g}: {row['accuracy']:.1%}" for row in rows),
        (0, len(rows)), (low, 1), (f"{name}, from low to high", "accuracy"),
    )  # fmt: skip
    for i, row in enumerate(rows):
        says = f"{row['from']:.3g} to {row['to']:.3g}: {row['accuracy']:.1%} of {row['images']:,} images"
        plot.bar(i + 0.12, i + 0.88, row["accuracy"], "s0 soft", says)
    for i, row in enumerate(rows):
        plot.whisker(i + 0.5, row["interval"], "ink")
    plot.line([(0, accuracy), (len(rows), accuracy)], "s4 dashed")
    ticks = [(i + 0.5, f"≤ {row['to']:.3g}") for i, row in enumerate(rows)]
    return plot.svg(ticks, percents(low, 1))


def corruption_chart(found: dict[str, Any]) -> Markup:
    """Accuracy by strength, a line for each corruption."""
    plot = Plot(
        "Accuracy under corruption", f"Clean {found['clean']:.1%}, on average over all {found['mean']:.1%}",
        (0, 3), (0, 1), ("strength", "accuracy"), 280,
    )  # fmt: skip
    for i, name in enumerate(found["corruptions"]):
        plot.name(f"s{i}", name)
    for i, row in enumerate(found["corruptions"].values()):
        points = [(0.0, found["clean"])] + [(k + 1.0, level["accuracy"]) for k, level in enumerate(row["levels"])]
        plot.line(points, f"s{i}")
        for point in points[1:]:
            plot.dot(point, f"s{i}", 2.6, f"{row['about']}, strength {point[0]:.0f}: {point[1]:.1%}")
    return plot.svg([(0, "clean"), (1, "1"), (2, "2"), (3, "3")], percents(0, 1))
