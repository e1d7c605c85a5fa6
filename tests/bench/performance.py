"""docs/performance.json, and docs/performance.md with its plot, which are written from it and from nothing else."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import BEST_ISA
from plot import bars
from rows import merged, tally

JSON_FILE, PAGE, PLOT = "performance.json", "performance.md", "performance.svg"

INTRODUCTION = """# Measured performance of the native CPU engine

This page is written by `make bench-cpu ARGS=--record` from [performance.json](performance.json); edit neither by hand,
except for a row's `note`. A row compares one figure of ours with a peer, with a limit of the machine that was measured in
the same minutes, with our own best instruction set, or with a fixed bound.

How it is measured: all contestants take turns in one run, each as a process of its own, with the same number of threads and
random weights of the published shapes; the figure is the median over the rounds. Repetitions during which the system took
processors away are discarded; `quiet` says how many of those taken count (0: all were disturbed, and the median of all
stands). 4-bit means our int4, llama.cpp's Q4_0 and ik_llama.cpp's IQ4_KS; 8-bit our int8 and their Q8_0.

A share of the *read limit* is the bytes that a token must read, times tokens a second, over streaming read; a share of the
*int8 limit* is the operations of the layers' matrices over register-only 8-bit products of the same instruction set. Limits
are measured right before and behind each of our repetitions, and each repetition has its own share: what a shared machine
can read changes within seconds.
The first token is a whole process from its start, model files in the page cache, to its end after one token of a 16-token
prompt. Ratios above 1 are in our favour, for seconds and megabytes too.
"""
METRICS = {
    "decode": "decode at depth {tokens}",
    "prefill": "prompt of {tokens}",
    "first_token": "first token of {tokens}",
    "token_bytes": "bytes a token",
    "resident": "resident memory",
}


def name(row: Mapping[str, Any]) -> str:
    words = METRICS[row["metric"]].format(tokens=row["tokens"])
    isa = "" if row["isa"] == "auto" else f", {row['isa']}"
    return f"{row['format']} {words}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}{isa}"


def verdict(row: Mapping[str, Any]) -> str:
    """One line about one row."""
    if row["limit_share"] is not None:
        compared = f"{row['limit_share']:.2f} of {row['against']} ({row['limit']:g} G/s)"
    elif row["ratio"] is not None:
        compared = f"{row['ratio']:.2f} x {row['against']} ({row['peer']:g} {row['unit']})"
    else:
        compared = f"{row['ours']:g} {row['unit']}"
    wanted = "" if row["target"] is None else f", wanted {row['target']:g}: {'met' if row['met'] else 'MISSED'}"
    return compared + wanted


def record(folder: Path, new: Sequence[Mapping[str, Any]]) -> None:
    """Merges rows into the JSON and writes page and plot again. Each file is replaced whole."""
    path = folder / JSON_FILE
    old = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    rows = merged(old, new)
    replace(path, json.dumps({"rows": rows}, indent=1) + "\n")
    replace(folder / PLOT, bars(rows))
    replace(folder / PAGE, page(rows))


def replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole of docs/performance.md."""
    met, judged = tally(rows)
    parts = [INTRODUCTION, f"{met} of {judged} targets are met.\n", f"![Tokens a second beside the peers]({PLOT})\n"]
    for size in dict.fromkeys(row["size"] for row in rows):
        parts.append(f"## {size}\n")
        parts.append(table([row for row in rows if row["size"] == size]))
    missed = [row for row in rows if row["met"] is False]
    if missed:
        parts.append("## Missed\n")
        parts.append(
            "\n".join(
                f"- **{row['size']} {name(row)}**, {verdict(row)}. {row.get('note', 'Not yet looked into.')}"
                for row in missed
            )
            + "\n"
        )
    return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| figure | ours | beside | theirs | ratio | share of limit | target | met | quiet | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = row["samples"]["shoal"], row["samples"].get(row["against"])
        quiet = f"{ours['quiet']}/{ours['taken']}" + (f", {theirs['quiet']}/{theirs['taken']}" if theirs else "")
        peer = "" if row["peer"] is None else f"{row['peer']:g}"
        if row["limit"] is not None:
            peer = f"{row['limit']:g} {'GB/s' if row['metric'] == 'decode' else 'Gop/s'}"
        beside = "our best set" if row["against"] == BEST_ISA else row["against"]
        cells = (
            name(row), f"{row['ours']:g} {row['unit']}", "" if beside == "absolute" else beside, peer,
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "" if row["limit_share"] is None else f"{row['limit_share']:.2f}",
            "" if row["target"] is None else f"{row['target']:g}",
            {True: "yes", False: "**no**", None: ""}[row["met"]], quiet, row["commit"],
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
