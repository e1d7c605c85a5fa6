"""Measures the native CPU engine beside its peers and the limits of the machine, and keeps docs/performance.json.

    make bench-cpu ARGS='--list'
    make bench-cpu ARGS='--cells "0.8B/int4/*" --rounds 5 --budget 1200 --record'

A cell is measured in rounds. In each, all contestants take their turn one after the other, each as a process of its own with
the same number of threads: a ratio compares neighbours in time. The limits are measured between our own repetitions, in the
same process (run_shoal.py). Medians over the rounds count; what the system disturbed is discarded (samples.py). Peers are named by environment variables
(contestants.py) and left out with a note where they are absent.
"""

import argparse
import fnmatch
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import model_files
import performance
import report
from cells import INT8, READ, Cell, all_cells
from contestants import Contestant, contestants
from process import ContestantFailed
from rows import SHOAL, Origin, merged, rows_of, tally
from samples import Measurement, beside_limits, summarise
from work import state_bytes, work_of

from shoal.runtime.container import open_container

DOCS = report.ROOT / "docs"


def token_bytes(cell: Cell) -> Measurement:
    """What a token reads: the file's own sizes of layers and scan, and the states."""
    container = open_container(model_files.shoal_directory(cell.size, cell.format))
    read = [
        t.num_bytes for name, t in container.tensors.items() if name.startswith(("layers.", "head.scan", "head.sigma"))
    ]
    return Measurement(((sum(read) + state_bytes(model_files.config_of(cell.size))) / 1e6,), 1.0, 0)


class Deadline(Exception):
    """The budget is spent."""


def measure(cell: Cell, rounds: int, deadline: float) -> tuple[dict[str, list[Measurement]], list[str]]:
    """(measurements by contestant, notes). Raises Deadline where not one whole round fitted."""
    entrants, notes = contestants(cell)
    taken: dict[str, list[Measurement]] = defaultdict(list)
    if cell.metric == "token_bytes":
        return {SHOAL: [token_bytes(cell)]}, notes
    ready = [entrant for entrant in entrants if prepared(entrant, cell, notes)]
    for number in range(rounds):
        if time.monotonic() > deadline:
            if number == 0:
                raise Deadline
            notes.append(f"the budget ended after {number} rounds")
            break
        for entrant in list(ready):
            try:
                taken[entrant.name] += entrant.measure(cell)
            except (ContestantFailed, KeyError, ValueError) as error:
                notes.append(f"{entrant.name}: {error}")
                ready.remove(entrant)
    return taken, notes


def prepared(entrant: Contestant, cell: Cell, notes: list[str]) -> bool:
    try:
        entrant.prepare(cell)
    except model_files.ModelMissing as error:
        notes.append(f"{entrant.name}: {error}")
        return False
    if cell.metric == "first_token":  # brings all of its files into the page cache
        try:
            entrant.measure(cell)
        except ContestantFailed as error:
            notes.append(f"{entrant.name}: {error}")
            return False
    return True


def run(cells: Sequence[Cell], options: argparse.Namespace, origin: Origin) -> list[dict]:
    deadline = time.monotonic() + options.budget
    rows: list[dict] = []
    for cell in cells:
        begun = time.monotonic()
        try:
            taken, notes = measure(cell, options.rounds, deadline)
        except Deadline:
            print(f"the budget of {options.budget:.0f} s is spent before {cell.key}")
            break
        results = {name: summary for name, list_ in taken.items() if (summary := summarise(list_)) is not None}
        depth = cell.tokens if cell.metric == "decode" else 0
        work = work_of(model_files.config_of(cell.size), cell.format, depth)
        beside = beside_limits(taken[SHOAL])
        kind = READ if cell.metric == "decode" else INT8
        new = rows_of(cell, results, {} if beside is None else {kind: beside}, work, origin)
        print(f"{cell.key} ({time.monotonic() - begun:.0f} s)", flush=True)
        for name, summary in results.items():
            print(f"  {name:28s} {summary.median:10.4g} {cell.unit:6s} quiet {summary.quiet} of {summary.taken}")
        for row in new:
            print(f"  {performance.verdict(row)}")
        for note in dict.fromkeys(notes):
            print(f"  not measured: {note}")
        rows += new
        if options.record and new:
            performance.record(DOCS, new)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="the native engine beside its peers and the machine's limits")
    parser.add_argument("--cells", default="*", help="patterns of cells, separated by commas (see --list)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds; the cells are in order of importance")
    parser.add_argument(
        "--record", action="store_true", help="merge the rows into docs/performance.json and write its page"
    )
    parser.add_argument(
        "--write", action="store_true", help="only write docs/performance.md and .svg again from the JSON"
    )
    parser.add_argument("--list", action="store_true", help="only name the cells")
    parser.add_argument("--out", type=Path, help="default: build/bench/cpu-<commit>.json")
    options = parser.parse_args()
    patterns = options.cells.split(",")
    cells = [cell for cell in all_cells() if any(fnmatch.fnmatch(cell.key, pattern) for pattern in patterns)]
    if options.list:
        print("\n".join(cell.key for cell in cells))
        return
    if options.write:
        performance.record(DOCS, [])
        return
    header = report.header("cpu", "numpy")
    origin = Origin(header["commit"], header["at"], header["machine"]["processor"])
    rows = run(cells, options, origin)
    met, judged = tally(rows)
    print(f"{met} of {judged} targets met; {len(rows)} rows")
    print(report.write(header | {"rows": merged([], rows)}, options.out))


if __name__ == "__main__":
    main()
