"""A small plot as inline SVG. The page's style sheet colors it; its title is read by screen readers."""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 360  # as wide as a narrow phone, so that text has the same size there
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 10, 40
LEGEND_ROW = 18  # pixels
LETTER_WIDTH = 6.3  # pixels, roughly

Point = tuple[float, float]
Tick = tuple[float, str]


class Plot:
    """Two axes and marks on them. A style is a class of the style sheet: `s0`, `s1`, ... are the series' colors."""

    def __init__(
        self, title: str, description: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str],
        height: int = 240,
    ):  # fmt: skip
        self.title = title
        self.description = description
        self.x, self.y = x, y
        self.labels = labels
        self.height = height
        self.marks: list[Markup] = []
        self.series: list[tuple[str, str]] = []

    def add_series(self, style: str, name: str) -> "Plot":
        """Adds a series to the legend; call it before any mark is added, since the legend moves the marks."""
        self.series.append((style, name))
        return self

    def line(self, points: Sequence[Point], style: str) -> "Plot":
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.to_pixels, points))
            self.marks.append(Markup('<polyline class="line {}" points="{}"/>').format(style, path))
        return self

    def dot(self, point: Point, style: str, radius: float = 3.2, tooltip: str = "") -> "Plot":
        x, y = self.to_pixels(point)
        self.marks.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
                style, x, y, radius, tooltip
            )
        )
        return self

    def whisker(self, x: float, interval: Sequence[float], style: str) -> "Plot":
        """Adds an interval as a vertical line."""
        (px, bottom), (_, top) = self.to_pixels((x, interval[0])), self.to_pixels((x, interval[1]))
        self.marks.append(
            Markup('<line class="whisker {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                style, px, px, bottom, top
            )
        )
        return self

    def bar(self, left: float, right: float, value: float, style: str, tooltip: str = "") -> "Plot":
        """Adds a bar from the x axis up to `value`."""
        (x0, y0), (x1, y1) = self.to_pixels((left, self.y[0])), self.to_pixels((right, value))
        self.marks.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(style, x0, y1, max(x1 - x0 - 1, 0.5), max(y0 - y1, 0), tooltip)
        )
        return self

    def svg(self, x_ticks: Sequence[Tick] = (), y_ticks: Sequence[Tick] = ()) -> Markup:
        """Returns the whole plot; ticks are at round numbers by default."""
        start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, self.height + self.legend_height, f"{self.title}. {self.description}"
        )
        parts = [
            start,
            *self._legend(),
            *self._y_axis(y_ticks or [(v, short(v)) for v in round_steps(*self.y)]),
            *self._x_axis(x_ticks or [(v, short(v)) for v in round_steps(*self.x)]),
            *self.marks,
            *self._labels(),
            Markup("</svg>"),
        ]
        return Markup("").join(parts)

    def to_pixels(self, point: Point) -> Point:
        """Converts data coordinates to pixels."""
        (x0, x1), (y0, y1) = self.x, self.y
        right = (point[0] - x0) / ((x1 - x0) or 1)
        up = (point[1] - y0) / ((y1 - y0) or 1)
        top = TOP + self.legend_height
        return LEFT + right * (WIDTH - LEFT - RIGHT), top + (1 - up) * (self.height - BOTTOM - TOP)

    @property
    def legend_height(self) -> int:
        return LEGEND_ROW * len(self._legend_rows())

    @property
    def _floor(self) -> int:
        """y of the x axis, in pixels."""
        return self.height + self.legend_height - BOTTOM

    def _legend_rows(self) -> list[list[tuple[str, str, float]]]:
        """Returns rows of (style, name, x in pixels)."""
        rows: list[list[tuple[str, str, float]]] = []
        x = float(WIDTH)
        for style, name in self.series:
            width = 26 + LETTER_WIDTH * len(name) + 12
            if x + width > WIDTH:
                rows.append([])
                x = LEFT
            rows[-1].append((style, name, x))
            x += width
        return rows

    def _legend(self) -> list[Markup]:
        line = Markup('<line class="line {}" x1="{:.0f}" x2="{:.0f}" y1="{}" y2="{}"/>')
        text = Markup('<text x="{:.0f}" y="{}">{}</text>')
        parts = []
        for row, entries in enumerate(self._legend_rows()):
            y = 12 + LEGEND_ROW * row
            for style, name, x in entries:
                parts += [line.format(style, x, x + 18, y, y), text.format(x + 23, y + 4, name)]
        return parts

    def _y_axis(self, ticks: Sequence[Tick]) -> list[Markup]:
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        label = Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
        parts = []
        for value, text in ticks:
            _, y = self.to_pixels((self.x[0], value))
            parts += [line.format(LEFT, WIDTH - RIGHT, y, y), label.format(LEFT - 6, y + 4, text)]
        return parts

    def _x_axis(self, ticks: Sequence[Tick]) -> list[Markup]:
        label = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
        return [label.format(self.to_pixels((v, self.y[0]))[0], self._floor + 15, text) for v, text in ticks]

    def _labels(self) -> list[Markup]:
        middle = (self._floor + TOP + self.legend_height) / 2
        return [
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (LEFT + WIDTH - RIGHT) / 2, self._floor + 33, self.labels[0]
            ),
            Markup('<text transform="translate(12 {:.0f}) rotate(-90)" text-anchor="middle">{}</text>').format(
                middle, self.labels[1]
            ),
        ]


def round_steps(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from low to high."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power: float = 10.0 ** (len(str(int(raw))) - 1) if raw >= 1 else 1.0
    while power > raw:
        power /= 10
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = -(-low // step) * step
    return [round(first + i * step, 10) for i in range(count * 2 + 2) if first + i * step <= high + step * 1e-6]


def short(value: float) -> str:
    return f"{value:.4g}"


def percent_ticks(low: float, high: float) -> list[Tick]:
    return [(v, f"{100 * v:.3g}%") for v in round_steps(low, high)]
