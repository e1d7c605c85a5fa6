"""The plot of docs/performance.md: tokens a second of ours and the peers', as horizontal bars in an SVG file. Pure."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLOURS = {"shoal": "#2f6f9f", "llama.cpp": "#c9a227", "ik_llama.cpp": "#9a6fb0", "transformers": "#8a8f98"}
WIDTH, LEFT, BAR, GAP, TOP = 760, 230, 13, 12, 34


def groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, dict[str, float]]]:
    """(metric, label, tokens a second by contestant) of every cell of the best instruction set that a peer stands beside."""
    found: dict[str, tuple[str, str, dict[str, float]]] = {}
    for row in rows:
        if row["isa"] != "auto" or row["unit"] != "tok/s" or row["peer"] is None:
            continue
        depth = f" at {row['tokens']}" if row["metric"] == "decode" else f" of {row['tokens']}"
        label = f"{row['size']} {row['format']} {row['metric']}{depth}, {row['threads']} thr"
        speeds = found.setdefault(row["cell"], (row["metric"], label, {"shoal": row["ours"]}))[2]
        speeds[row["against"]] = row["peer"]
    return sorted(found.values(), key=lambda group: group[0])


def bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each group is scaled to its own fastest: the ratio is what the eye should see. The figures stand at the bars."""
    shown = groups(rows)
    parts, y = [], TOP
    for _, label, speeds in shown:
        height = len(speeds) * BAR
        parts.append(f'<text x="{LEFT - 8}" y="{y + height / 2 + 4:.0f}" text-anchor="end">{escape(label)}</text>')
        fastest = max(speeds.values())
        for name, speed in speeds.items():
            width = max(speed / fastest * (WIDTH - LEFT - 70), 1)
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS.get(name, "#888")}"/>'
            )
            parts.append(f'<text x="{LEFT + width + 5:.1f}" y="{y + BAR - 3}" class="n">{speed:.3g}</text>')
            y += BAR
        y += GAP
    legend, x = [], LEFT
    for name, colour in COLOURS.items():
        legend.append(
            f'<rect x="{x}" y="10" width="11" height="11" fill="{colour}"/><text x="{x + 16}" y="20">{name}</text>'
        )
        x += 30 + 8 * len(name)
    style = "text{font:12px sans-serif;fill:#333}.n{font-size:11px}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img">'
        f"<title>Tokens a second, ours and the peers'</title><style>{style}</style>"
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>' + "".join(legend + parts) + "</svg>\n"
    )
