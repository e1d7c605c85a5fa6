"""One round of the bench of a start, with the smallest model."""

import json

import pytest
import start

from shoal.runtime.model_dirs import packaged_pocket
from shoal.runtime.native_weights import served_weights


def test_a_round_has_every_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    published = packaged_pocket()
    model = served_weights(published, "", "bf16", tmp_path, lambda line: None).container.path.parent
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(start.PROMPT))
    seconds = start.measure(model, ids, 1)
    assert seconds.keys() == {"python", "mapping", "first_token", "engine_ready", "engine_load"}
    assert seconds["python"] > 0 and 0 < seconds["engine_load"] < seconds["engine_ready"]


def test_a_model_that_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(start.EngineNotReady, match="config"):
        start.engine_seconds(tmp_path, 1)
