"""Rows: what meets a target and what does not, and how new rows meet old ones."""

import pytest
from cells import ABSOLUTE, BEST_ISA, IK, INT8, LLAMA, LLAMA_AVX2, READ, Cell, all_cells, targets_of
from performance import page, record, verdict
from plot import bars, groups
from rows import SHOAL, Origin, Work, judge, merged, order, rows_of, tally
from samples import Limit, Summary

ORIGIN = Origin("0123456789ab", "2026-01-01T00:00:00+00:00", "a processor")
WORK = Work(token_bytes=0.5e9, token_operations=1e9)
DECODE = Cell("0.8B", "int4", "decode", 0, 2)
PREFILL = Cell("0.8B", "int4", "prefill", 512, 2)
FIRST = Cell("0.8B", "int4", "first_token", 16, 2)


def summary(median):
    return Summary(median, 0.01, 3, 3)


def decode_rows(ours=100.0, llama=50.0, ik=90.0, read=55e9):
    results = {SHOAL: summary(ours), LLAMA: summary(llama), IK: summary(ik)}
    return {
        row["against"]: row for row in rows_of(DECODE, results, {READ: Limit(read, ours / read, 5, 7)}, WORK, ORIGIN)
    }


def test_a_row_for_each_comparison():
    rows = decode_rows()
    assert set(rows) == {LLAMA, IK, READ}
    assert (rows[LLAMA]["ratio"], rows[LLAMA]["target"], rows[LLAMA]["met"]) == (2.0, 1.9, True)
    assert (rows[IK]["ratio"], rows[IK]["met"]) == (1.111, False)
    assert (rows[READ]["limit"], rows[READ]["limit_share"], rows[READ]["met"]) == (55.0, 0.909, True)
    assert rows[READ]["samples"][READ] == {"quiet": 5, "taken": 7}
    assert rows[READ]["commit"] == ORIGIN.commit
    assert rows[LLAMA]["samples"][LLAMA] == {"quiet": 3, "taken": 3, "spread": 0.01}


def test_the_wanted_share_falls_where_reading_is_wide():
    assert decode_rows(read=59e9)[READ]["target"] == 0.88
    assert decode_rows(ours=109.0, read=65e9)[READ] | {"met": True} == decode_rows(ours=109.0, read=65e9)[READ]
    assert decode_rows(read=65e9)[READ]["target"] == 0.83


def test_less_is_better_for_seconds():
    rows = rows_of(FIRST, {SHOAL: summary(0.5), LLAMA: summary(1.5)}, {}, WORK, ORIGIN)
    assert [(row["against"], row["ratio"], row["met"]) for row in rows] == [(LLAMA, 3.0, True)]


def test_an_absolute_bound():
    cell = Cell("4B", "int4", "first_token", 16, 2)
    row = judge(cell, targets_of(cell)[0], summary(0.61), {}, {}, None)
    assert (row["against"], row["target"], row["met"]) == (ABSOLUTE, 0.6, False)


def test_nothing_is_claimed_without_a_figure_or_a_peer():
    assert rows_of(DECODE, {LLAMA: summary(50.0)}, {READ: Limit(5e10, 1e-9)}, WORK, ORIGIN) == []
    assert [row["against"] for row in rows_of(PREFILL, {SHOAL: summary(1.0)}, {}, WORK, ORIGIN)] == []


def test_an_instruction_set_stands_beside_our_best_and_the_peer_built_for_it():
    assert [target.against for target in targets_of(Cell("4B", "int4", "decode", 0, 2, "avx2"))] == [
        BEST_ISA,
        LLAMA_AVX2,
        READ,
    ]
    assert targets_of(Cell("4B", "int4", "prefill", 512, 2, "avx2"))[0].wanted is None


def test_cells_are_unique_and_all_have_comparisons():
    cells = list(all_cells())
    assert len({cell.key for cell in cells}) == len(cells)
    assert all(targets_of(cell) for cell in cells)
    assert {cell.size for cell in cells} == {"0.8B", "2B", "4B", "9B"}
    assert INT8 in {target.against for target in targets_of(PREFILL)}


def test_new_rows_replace_old_ones_and_notes_stay_while_a_row_is_missed():
    old = list(decode_rows(ours=80.0).values())
    old[0]["note"] = "the head takes a third; tried a, tried b"
    again = merged(old, list(decode_rows(ours=81.0).values()))
    assert [row["ours"] for row in again] == [81.0] * 3
    assert [row.get("note") for row in again if row["against"] == LLAMA] == [old[0]["note"]]
    better = merged(again, list(decode_rows(ours=200.0).values()))
    assert not any("note" in row for row in better)
    assert tally(better) == (3, 3)


def test_rows_are_sorted_by_size_then_format():
    rows = [
        row
        for size in ("4B", "0.8B")
        for row in rows_of(
            Cell(size, "int4", "decode", 0, 2), {SHOAL: summary(1.0), LLAMA: summary(1.0)}, {}, WORK, ORIGIN
        )
    ]
    assert [row["size"] for row in merged([], rows)] == ["0.8B", "4B"]
    assert sorted(rows, key=order) == merged([], rows)


def test_the_page_says_what_the_json_says(tmp_path):
    rows = list(decode_rows(ours=80.0).values())
    record(tmp_path, rows)
    record(tmp_path, [])
    text = (tmp_path / "performance.md").read_text()
    assert "of 3 targets are met" in text and "## Missed" in text and "performance.svg" in text
    assert text == page(merged([], rows))
    assert "<svg" in (tmp_path / "performance.svg").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"performance.json", "performance.md", "performance.svg"}


def test_the_plot_shows_every_contestant_of_a_cell():
    rows = list(decode_rows().values())
    assert groups(rows) == [("decode", "0.8B int4 decode at 0, 2 thr", {SHOAL: 100.0, LLAMA: 50.0, IK: 90.0})]
    assert bars(rows).count("<rect") == 1 + 4 + 3
    assert groups([]) == []


@pytest.mark.parametrize(("against", "words"), [(LLAMA, "2.00 x llama.cpp"), (READ, "0.91 of read limit (55 G/s)")])
def test_a_verdict_is_one_line(against, words):
    assert words in verdict(decode_rows()[against])
