"""The choice: the largest that is there and fits, judged by the engine's own plan, at every threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.catalogue import Candidate, candidate, published, stored
from shoal.agent.errors import BadOption, NothingFits
from shoal.agent.explain import explanation, explanation_text
from shoal.agent.select import Budget, Outcome, Selection, select, selection_json
from shoal.agent.store import Store
from shoal.kernels import cpu
from shoal.kernels.cpu import best_isa
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.plan import plan_memory

from .tiny_models import tiny_config, write_tiny

OPTIONS = EngineOptions(parallel=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name, hidden_size in (("small", 64), ("middle", 256), ("large", 512)):
        write_tiny(tmp_path / "models" / name, hidden_size)
    return Store(tmp_path / "models", None)


def chosen_name(selection: Selection) -> str | None:
    return None if selection.chosen is None else selection.chosen.candidate.name


def least(candidates: list[Candidate], name: str) -> int:
    """The smallest budget under which the planner takes this model, by bisection: asked of the planner alone."""
    config = next(one.config for one in candidates if one.name == name)
    assert config is not None
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            plan_memory(config, EngineOptions(parallel=2, memory=middle))
            high = middle
        except Exception:
            low = middle + 1
    return low


def test_the_budget_steps_through_the_sizes(store: Store) -> None:
    candidates = stored(store)
    thresholds = {name: least(candidates, name) for name in ("small", "middle", "large")}
    assert thresholds["small"] < thresholds["middle"] < thresholds["large"]
    below = None
    for name in ("small", "middle", "large"):
        at, under = thresholds[name], thresholds[name] - 1
        assert chosen_name(select(candidates, Budget(at, "test"), OPTIONS)) == name
        under_selection = select(candidates, Budget(under, "test"), OPTIONS)
        assert chosen_name(under_selection) == below
        larger = under_selection.next_larger
        assert larger is not None and larger.candidate.name == name and larger.needed_bytes == at
        below = name


def test_the_verdicts_say_why(store: Store) -> None:
    candidates = stored(store)
    budget = Budget(least(candidates, "middle"), "test")
    selection = select(candidates, budget, OPTIONS)
    outcomes = {verdict.candidate.name: verdict.outcome for verdict in selection.verdicts}
    assert outcomes == {"large": Outcome.DOES_NOT_FIT, "middle": Outcome.CHOSEN, "small": Outcome.SMALLER}
    assert [verdict.candidate.name for verdict in selection.verdicts] == ["large", "middle", "small"]
    plan = selection.require().plan
    assert plan is not None and plan.total_bytes <= budget.num_bytes
    content = json.loads(json.dumps(selection_json(selection, "avx2")))
    assert content["chosen"]["plan"]["total_bytes"] == sum(content["chosen"]["plan"]["by_pool"].values())
    assert content["next_larger"]["needed_bytes"] == least(candidates, "large")


def test_nothing_fits_has_the_bytes(store: Store) -> None:
    selection = select(stored(store), Budget(1000, "--memory"), OPTIONS)
    with pytest.raises(NothingFits, match=r"1,000 bytes \(--memory\).*small: needs [0-9,]+ bytes"):
        selection.require()
    with pytest.raises(NothingFits, match="no model"):
        select([], Budget(1000, "--memory"), OPTIONS).require()


def test_broken_and_unserved_models_are_named_not_chosen(store: Store, tmp_path: Path) -> None:
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{")
    empty = write_tiny(tmp_path / "models" / "empty", 1024)
    (empty / "model.safetensors").unlink()
    selection = select(stored(store), Budget(1 << 40, "test"), OPTIONS)
    verdicts = {verdict.candidate.name: verdict for verdict in selection.verdicts}
    assert chosen_name(selection) == "large"
    assert verdicts["broken"].outcome is Outcome.UNUSABLE and "config" in verdicts["broken"].reason
    assert verdicts["empty"].outcome is Outcome.UNUSABLE and "safetensors" in verdicts["empty"].reason


def test_sizes_that_are_not_in_the_store_are_never_chosen(store: Store) -> None:
    candidates = stored(store) + published()
    selection = select(candidates, Budget(1 << 50, "test"), OPTIONS)
    assert chosen_name(selection) == "large"
    absent = [verdict for verdict in selection.verdicts if verdict.outcome is Outcome.NOT_IN_STORE]
    assert {verdict.candidate.name for verdict in absent} >= {"qwen3.5-0.8b", "qwen3.5-27b"}
    for verdict in absent:
        assert verdict.needed_bytes is not None and verdict.plan is not None
        assert verdict.plan.weights < verdict.needed_bytes


def test_published_bytes_are_exact() -> None:
    sizes = {one.name: one for one in published()}
    assert sizes["qwen3.5-0.8b"].num_parameters == 752_393_024
    assert list(sizes) == sorted(sizes, key=lambda name: sizes[name].num_parameters)
    assert "qwen3.5-4b" not in {one.name for one in published(["qwen3.5-4b"])}


CONFIGS = [ModelConfig.from_mapping(tiny_config(hidden)) for hidden in (64, 128, 256, 512)]


@given(st.lists(st.sampled_from(range(4)), max_size=4, unique=True), st.integers(1, 1 << 31))
def test_the_choice_is_the_largest_that_the_planner_takes(indices: list[int], budget: int) -> None:
    candidates = [
        Candidate(str(index), "", CONFIGS[index].hidden_size, 0, Path("/m"), CONFIGS[index]) for index in indices
    ]
    fitting = []
    for index in indices:
        try:
            plan = plan_memory(CONFIGS[index], EngineOptions(parallel=2, memory=budget))
        except Exception:
            continue
        assert plan.total_bytes <= budget
        fitting.append(index)
    selection = select(candidates, Budget(budget, "test"), OPTIONS)
    assert chosen_name(selection) == (str(max(fitting)) if fitting else None)
    again: Any = select(reversed(candidates), Budget(budget, "test"), OPTIONS)
    assert again == selection


def test_explain_for_people_and_machines(tmp_path: Path) -> None:
    one = write_tiny(tmp_path / "models" / "small", 64)
    needed = least([candidate(Store(tmp_path / "models", None).resolve(str(one)))], "small")
    content = explanation(tmp_path, [str(one)], EngineOptions(parallel=2, memory=needed))
    assert content["chosen"]["name"] == "small" and content["budget"] == {"bytes": needed, "source": "--memory"}
    assert content["next_larger"]["name"] == "qwen3.5-0.8b"
    assert {row["name"] for row in content["candidates"]} >= {"small", "qwen3.5-9b"}
    assert content["hardware"]["memory_total_bytes"]["source"]
    text = explanation_text(content)
    assert "would serve   small" in text and "qwen3.5-0.8b needs" in text and f"{needed:,}" in text
    nothing = explanation(tmp_path, [str(one)], EngineOptions(parallel=2, memory=needed - 1))
    assert nothing["chosen"] is None and nothing["next_larger"]["name"] == "small"
    assert "nothing" in explanation_text(nothing)


@pytest.mark.parametrize(
    "asked, backend, weights, isa",
    [
        ({}, "cpu", "bf16", best_isa()),
        ({"format": "int4"}, "cpu", "int4", best_isa()),
        ({"format": "int8", "isa": "scalar"}, "cpu", "int8", "scalar"),
        ({"backend": "reference"}, "reference", "bf16", None),
    ],
)
def test_explain_says_what_would_compute(
    tmp_path: Path, asked: dict[str, str], backend: str, weights: str, isa: str | None
) -> None:
    one = write_tiny(tmp_path / "models" / "small", 64)
    content = explanation(tmp_path, [str(one)], EngineOptions(memory=1 << 30, **asked))
    plan = content["chosen"]["plan"]
    assert (plan["backend"], plan["format"], plan["isa"]) == (backend, weights, isa)
    told = f"back end {backend} ({isa}), weights {weights}" if isa else f"back end {backend}, weights {weights}"
    assert told in explanation_text(content)


def test_explain_refuses_a_set_that_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine this is: the kernels are asked for a set that none has, in place of the one named."""
    monkeypatch.setattr(cpu, "choose_isa", lambda asked, choose=cpu.choose_isa: choose("no such set"))
    one = write_tiny(tmp_path / "models" / "small", 64)
    with pytest.raises(BadOption, match=r"--isa.*it has: auto .*scalar"):
        explanation(tmp_path, [str(one)], EngineOptions(memory=1 << 30, isa="avx2"))
