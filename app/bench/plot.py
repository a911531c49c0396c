"""A report as a page to look at: a histogram of latencies and a timeline.

The page is one file of HTML and SVG, without scripts and without anything from other servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from .load import NO_ANSWER, Record, Sample
from .report import OK, Report, percentile

WIDTH, HEIGHT = 900, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 24, 40
"""The margins around a drawing, in pixels."""

BINS = 60
"""The bars of the histogram."""

MAX_POINTS = 4000
"""The most requests of one outcome that the timeline draws."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --grid: #d8dee4; --good: #2f6fb7;
  --bad: #c2410c; --mark: #7c3aed }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --grid: #30363d;
  --good: #6cb0f5; --bad: #ff8f5a; --mark: #c4a7ff } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 940px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.3em } h2 { font-size: 1.05em; margin-bottom: 0 }
pre { font: 13px/1.5 ui-monospace, monospace; overflow-x: auto; white-space: pre-wrap }
svg { width: 100%; height: auto } text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.grid { stroke: var(--grid) } .good { fill: var(--good) } .bad { fill: var(--bad) }
.mark { stroke: var(--mark); stroke-dasharray: 4 3 } .rate { fill: none; stroke: var(--mark);
  stroke-width: 1.5 } text.mark { fill: var(--mark); stroke: none }
"""


def page(title: str, report: Report, record: Record) -> str:
    """Return the page of a load. `title`: what was loaded."""
    good = [sample for sample in record.samples if sample.status == OK]
    failed = sum(sample.status != OK for sample in record.samples)
    dots = f"a dot for each of {len(record.samples)} requests, at its start"
    if max(len(good), failed) > MAX_POINTS:
        dots = f"dots for {MAX_POINTS} requests of each outcome, at their start"
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)} - penstock bench</title>
<style>{STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<pre>{escape(str(report))}</pre>
<h2>Latency of the answers with status 200</h2>
{histogram([sample.latency * 1000 for sample in good])}
<h2>Timeline: {dots}; the line is the rate of answers</h2>
{timeline(record)}
</body>
</html>
"""


def histogram(milliseconds: Sequence[float]) -> str:
    """Draw how many answers took how long. The last bar has all that took longer."""
    ordered = sorted(milliseconds)
    if not ordered:
        return "<p>no answer with status 200</p>"
    end = percentile(ordered, 99.5) * 1.05 or 1.0
    counts = [0] * (BINS + 1)
    for value in ordered:
        counts[min(int(value / end * BINS), BINS)] += 1
    most = max(counts)
    width = (WIDTH - LEFT - RIGHT) / (BINS + 1)
    bars = []
    for number, count in enumerate(counts):
        if count:
            low = end * number / BINS
            span = f"{low:.3g} to {end * (number + 1) / BINS:.3g} ms"
            if number == BINS:
                span = f"more than {low:.3g} ms"
            height = (HEIGHT - TOP - BOTTOM) * count / most
            bars.append(
                f'<rect class="good" x="{LEFT + width * number:.1f}" '
                f'y="{HEIGHT - BOTTOM - height:.1f}" width="{width * 0.9:.1f}" '
                f'height="{height:.1f}"><title>{span}: {count}</title></rect>'
            )
    scale = end * (BINS + 1) / BINS
    marks = []
    for number, share in enumerate((50, 90, 99)):
        value = percentile(ordered, share)
        x = _x(value, scale)
        marks.append(
            f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="mark" x="{x + 3}" y="{TOP + 12 + 14 * number}">TP{share} {value:.3g} ms'
            "</text>"
        )
    return _drawing([*_axes(scale, "ms", most, "answers"), *bars, *marks])


def timeline(record: Record) -> str:
    """Draw when each request began and how long it took, and the rate of the answers."""
    if not record.samples:
        return "<p>no request has ended</p>"
    begun, seconds = record.begun, max(record.seconds, 1e-9)
    begun = begun or min(sample.started for sample in record.samples)
    longest = max(sample.latency for sample in record.samples) * 1000 or 1.0
    good = [sample for sample in record.samples if sample.status == OK]
    bad = [sample for sample in record.samples if sample.status != OK]
    dots = []
    for name, samples in (("good", good), ("bad", bad)):
        for sample in _thinned(samples):
            outcome = "no answer" if sample.status == NO_ANSWER else f"status {sample.status}"
            latency = sample.latency * 1000
            dots.append(
                f'<circle class="{name}" r="1.8" cx="{_x(sample.started - begun, seconds)}" '
                f'cy="{_y(latency, longest)}"><title>{outcome}, {latency:.3g} ms</title></circle>'
            )
    rates = [0] * BINS
    for sample in record.samples:
        rates[max(0, min(int((sample.ended - begun) / seconds * BINS), BINS - 1))] += 1
    step = seconds / BINS
    fastest = max(rates)
    points = " ".join(
        f"{_x((number + 0.5) * step, seconds)},{_y(count, fastest * 1.05)}"
        for number, count in enumerate(rates)
    )
    line = (
        f'<polyline class="rate" points="{points}"/>'
        f'<text class="mark" x="{LEFT + 4}" y="{TOP + 10}">at most {fastest / step:.0f}/s</text>'
    )
    return _drawing([*_axes(seconds, "s", longest, "ms"), *dots, line])


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return at most `MAX_POINTS` of the samples: evenly chosen, and the slowest of all."""
    if len(samples) <= MAX_POINTS:
        return samples
    step = -(-len(samples) // (MAX_POINTS - 1))
    return [*samples[::step], max(samples, key=lambda sample: sample.latency)]


def _axes(across: float, unit: str, up: float, name: str) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for number in range(6):
        x, y = _x(number, 5), _y(number, 5)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        value = across * number / 5
        yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{up * number / 5:.3g}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{bottom + 32}" text-anchor="end">{unit}</text>'
    yield f'<text x="4" y="{TOP - 10}">{name}</text>'


def _x(value: float, most: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * value / most, 1)


def _y(value: float, most: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most, 1)


def _drawing(parts: Iterable[str]) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n{inside}\n</svg>'
