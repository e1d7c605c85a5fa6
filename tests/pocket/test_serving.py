"""Pocket as the engine serves it, in every weight format, answers held-out prompts."""

import pytest

from models.pocket.evaluate import by_engine, measure
from models.pocket.export import HERE

SKILLS = ["greet", "copy", "json", "memory"]


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int4"])
def test_every_format_keeps_the_skills(weight_format):
    result = measure(by_engine(HERE, weight_format), 12, 3, SKILLS)
    assert sum(r["right"] for r in result.values()) >= 12 * len(SKILLS) - 2
