"""From measurements to the rows of docs/performance.json, and merging them into what is there. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cells import ABSOLUTE, INT8, LESS_IS_BETTER, READ, WIDE_READ_PER_S, Cell, Target, targets_of
from samples import Limit, Summary

SHOAL = "shoal"


@dataclass(frozen=True)
class Work:
    """What one token asks of the machine at the least: bytes read in decode, 8-bit operations in prefill."""

    token_bytes: float
    token_operations: float


@dataclass(frozen=True)
class Origin:
    """Where and when: stands in every row, because rows of several runs stand side by side."""

    commit: str
    at: str
    machine: str


def rows_of(
    cell: Cell, results: Mapping[str, Summary], limits: Mapping[str, Limit], work: Work | None, origin: Origin
) -> list[dict[str, Any]]:
    """A row a target that could be judged; none without a figure of ours. `results` by contestant, `limits` by kind."""
    ours = results.get(SHOAL)
    if ours is None:
        return []
    rows = []
    for target in targets_of(cell):
        row = judge(cell, target, ours, results, limits, work)
        if row is not None:
            rows.append(
                {**head(cell, ours), **row, "commit": origin.commit, "at": origin.at, "machine": origin.machine}
            )
    return rows


def head(cell: Cell, ours: Summary) -> dict[str, Any]:
    return {
        "cell": cell.key, "size": cell.size, "format": cell.format, "metric": cell.metric, "tokens": cell.tokens,
        "threads": cell.threads, "isa": cell.isa, "unit": cell.unit, "ours": rounded(ours.median),
    }  # fmt: skip


def judge(
    cell: Cell,
    target: Target,
    ours: Summary,
    results: Mapping[str, Summary],
    limits: Mapping[str, Limit],
    work: Work | None,
) -> dict[str, Any] | None:
    """The part of a row that depends on the target. None if what it compares with was not measured."""
    samples = {SHOAL: ours.to_json()}
    row: dict[str, Any] = {"against": target.against, "peer": None, "ratio": None, "limit": None, "limit_share": None}
    if target.against == ABSOLUTE:
        met = None if target.wanted is None else ours.median <= target.wanted
        return {**row, "target": target.wanted, "met": met, "samples": samples}
    if target.against in (READ, INT8):
        if target.against not in limits or work is None:
            return None
        measured = limits[target.against]
        samples |= {target.against: {"quiet": measured.quiet, "taken": measured.taken}}
        share = measured.value_share * (work.token_bytes if target.against == READ else work.token_operations)
        wide = target.wanted_wide is not None and target.against == READ and measured.per_s >= WIDE_READ_PER_S
        wanted = target.wanted_wide if wide else target.wanted
        row |= {"limit": rounded(measured.per_s / 1e9), "limit_share": round(share, 3)}
        return {**row, "target": wanted, "met": None if wanted is None else share >= wanted, "samples": samples}
    peer = results.get(target.against)
    if peer is None:
        return None
    ratio = peer.median / ours.median if cell.metric in LESS_IS_BETTER else ours.median / peer.median
    row |= {"peer": rounded(peer.median), "ratio": round(ratio, 3)}
    met = None if target.wanted is None else ratio >= target.wanted
    return {**row, "target": target.wanted, "met": met, "samples": samples | {target.against: peer.to_json()}}


def rounded(value: float) -> float:
    """Four significant digits: more is noise."""
    return float(f"{value:.4g}")


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """New rows replace old ones of the same cell and comparison; a note stays for as long as the row is still missed."""
    rows = {(row["cell"], row["against"]): dict(row) for row in old}
    for row in new:
        place = (row["cell"], row["against"])
        note = rows.get(place, {}).get("note")
        rows[place] = dict(row) | ({"note": note} if note and row["met"] is False else {})
    return sorted(rows.values(), key=order)


def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    formats = ("int4", "int8", "bf16")
    metrics = ("decode", "prefill", "first_token", "token_bytes", "resident")
    return (
        float(row["size"].rstrip("B")), row["isa"] != "auto", row["isa"], formats.index(row["format"]),
        metrics.index(row["metric"]), row["tokens"], -row["threads"], row["against"],
    )  # fmt: skip


def tally(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(met, judged)."""
    judged = [row for row in rows if row["met"] is not None]
    return sum(row["met"] for row in judged), len(judged)
