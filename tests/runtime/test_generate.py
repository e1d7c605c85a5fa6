"""`shoal generate`, its options, and how a model's name becomes a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from shoal.runtime.generate_cli import generate
from shoal.runtime.generate_result import AnswerCollector
from shoal.runtime.model_dirs import ModelNotFound, packaged_pocket, resolve_model, shoal_home, store_directory_name
from shoal.runtime.options import EngineOptions
from shoal.runtime.options_cli import SizeType, engine_options, take_engine_options
from shoal.runtime.wire import Delta, DeltaKind, ErrorInfo, Finish, FinishReason, Output, Timings, Usage


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(generate, [str(argument) for argument in arguments])


def run_json(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


GREEDY = ("--temperature", "0", "--ignore-eos", "--context", "200", "--threads", "1")


def test_one_json_object_has_everything(tiny_checkpoint: Path) -> None:
    answer = run_json(tiny_checkpoint, "--prompt", "hello", "--max-tokens", "6", "--logprobs", "2", *GREEDY)
    assert answer["prompt_token_ids"] == list(b"hello")
    assert len(answer["token_ids"]) == 6
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6}
    assert set(answer["timings"]) == {"queue_s", "prefill_s", "ttft_s", "decode_s", "total_s"}
    assert [entry["token_id"] for entry in answer["logprobs"]] == answer["token_ids"]
    assert [len(entry["top"]) for entry in answer["logprobs"]] == [2] * 6
    assert answer["logprobs"][0]["top"][0]["token_id"] == answer["token_ids"][0]  # greedy takes the likeliest
    assert (answer["reasoning"], answer["tool_calls"]) == ("", [])


def test_text_comes_as_it_is_and_equals_the_json(tiny_checkpoint: Path) -> None:
    arguments = (tiny_checkpoint, "--prompt", "hello", "--max-tokens", "6", *GREEDY)
    answer = run_json(*arguments)
    assert "logprobs" not in answer
    assert run(*arguments).stdout == answer["text"] + "\n"


def test_ids_and_text_are_the_same_prompt(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text(json.dumps(list(b"hello")))
    by_ids = run_json(tiny_checkpoint, "--ids", file, "--max-tokens", "6", *GREEDY)
    by_text = run_json(tiny_checkpoint, "--prompt", "hello", "--max-tokens", "6", *GREEDY)
    assert by_ids["token_ids"] == by_text["token_ids"]


def test_a_seed_repeats_an_answer_and_sampling_reaches_the_engine(tiny_checkpoint: Path) -> None:
    def ids(*arguments: str) -> list[int]:
        base = ("--prompt", "hello", "--max-tokens", "12", "--ignore-eos", "--context", "200", "--threads", "1")
        answer: list[int] = run_json(tiny_checkpoint, *base, *arguments)["token_ids"]
        return answer

    seeded = ids("--temperature", "1", "--seed", "5")
    assert ids("--temperature", "1", "--seed", "5") == seeded
    assert ids("--temperature", "1", "--seed", "6") != seeded
    assert ids("--temperature", "1", "--seed", "6", "--top-k", "1") == ids("--temperature", "0")


def test_chat_goes_through_the_template(tiny_checkpoint: Path) -> None:
    answer = run_json(tiny_checkpoint, "--chat", "hi <|im_start|>", "--max-tokens", "2", *GREEDY)
    prompt = answer["prompt_token_ids"]
    start = min(token_id for token_id in prompt if token_id >= 256)
    assert prompt.count(start) == 2  # the template's two, not the one that the message spells
    assert len(prompt) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--prompt", "a", "--chat", "b"),
        ("--prompt", "a", "--max-tokens", "0"),
        ("--prompt", "a", "--logprobs", "21"),
        ("--prompt", "a", "--backend", "abacus"),
        ("--prompt", "a", "--parallel", "100000"),
        ("--prompt", "a", "--memory", "lots"),
        ("--ids", "/nowhere.json"),
        ("--prompt", "a", "--no-such-flag"),
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_usage_is_status_2(tiny_checkpoint: Path, arguments: tuple[str, ...]) -> None:
    done = run(tiny_checkpoint, *arguments)
    assert done.exit_code == 2
    assert "Error: " in done.output


def test_failures_are_status_1_and_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bad_ids = tmp_path / "bad.json"
    bad_ids.write_text('{"ids": [1]}')
    unknown_id = tmp_path / "unknown.json"
    unknown_id.write_text("[1, 300]")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ("no-such-model", "--prompt", "a"),
        (empty, "--prompt", "a"),
        (tiny_checkpoint, "--ids", bad_ids),
        (tiny_checkpoint, "--ids", unknown_id),
        (tiny_checkpoint, "--prompt", "a" * 300, "--context", "200"),
        (tiny_checkpoint, "--prompt", "a", "--temperature", "-1"),
        (tiny_checkpoint, "--prompt", "a", "--memory", "1kB"),
    ]
    for case in cases:
        done = run(*case)
        assert done.exit_code == 1, (case, done.output)
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


# --- the collected answer --------------------------------------------------------------------------------------------


def test_deltas_are_put_together_by_kind() -> None:
    collector = AnswerCollector()
    deltas = [
        Delta(DeltaKind.REASONING, "hm"),
        Delta(DeltaKind.TEXT, "so"),
        Delta(DeltaKind.TOOL_CALL_START, "", 0, "call_1", "add"),
        Delta(DeltaKind.TOOL_CALL_ARGUMENTS, '{"a":', 0),
        Delta(DeltaKind.TOOL_CALL_ARGUMENTS, "1}", 0),
        Delta(DeltaKind.TOOL_CALL_START, "", 1, "call_2", "sub"),
    ]
    collector.add(Output(request_id="r", token_ids=[1, 2], deltas=deltas[:4]))
    finish = Finish(reason=FinishReason.TOOL_CALLS, usage=Usage(3, 4), timings=Timings())
    collector.add(Output(request_id="r", token_ids=[3], deltas=deltas[4:], finish=finish))
    result = collector.result()
    assert (result["text"], result["reasoning"], result["token_ids"]) == ("so", "hm", [1, 2, 3])
    assert result["tool_calls"] == [
        {"id": "call_1", "name": "add", "arguments": '{"a":1}'},
        {"id": "call_2", "name": "sub", "arguments": ""},
    ]
    assert result["finish_reason"] == "tool_calls"
    assert collector.error is None


def test_an_error_is_seen() -> None:
    collector = AnswerCollector()
    error = ErrorInfo(code="internal_error", message="m")
    finish = Finish(reason=FinishReason.ERROR, usage=Usage(0, 0), timings=Timings(), error=error)
    collector.add(Output(request_id="r", finish=finish))
    assert collector.error == error


# --- names and sizes -------------------------------------------------------------------------------------------------


def put_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def test_names_are_directories_of_the_store(tmp_path: Path) -> None:
    published = put_model(tmp_path / "models" / "Qwen--Qwen3.5-0.8B")
    own = put_model(tmp_path / "models" / "my-finetune")
    elsewhere = put_model(tmp_path / "elsewhere")
    assert resolve_model("qwen3.5-0.8b", tmp_path) == published
    assert resolve_model("Qwen/Qwen3.5-0.8B", tmp_path) == published
    assert resolve_model("my-finetune", tmp_path) == own
    assert resolve_model(str(elsewhere), tmp_path) == elsewhere
    assert resolve_model("pocket", tmp_path) == packaged_pocket()
    assert store_directory_name("qwen3.5-35b-a3b") == "Qwen--Qwen3.5-35B-A3B"


@pytest.mark.parametrize("name", ["qwen3.5-9b", "../../etc", "models", ".", "a/b/c", "", "no\0name"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(name, tmp_path)


def test_home_is_the_environments_or_the_platforms() -> None:
    assert shoal_home({"SHOAL_HOME": "/somewhere"}) == Path("/somewhere")
    assert shoal_home({}).name == "shoal"


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 1024**3), ("1.5GB", 1_500_000_000), ("500 mb", 500_000_000), ("4096", 4096), ("2k", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert SizeType().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4 gallons", "1e9", "9" * 19, "2000000TiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SizeType().convert(text, None, None)


def test_only_given_options_replace_the_engines_defaults() -> None:
    @click.command()
    @engine_options
    def show(**values: Any) -> None:
        options = take_engine_options(values)
        assert values == {}
        click.echo(f"{options.parallel} {options.memory} {options.dtype} {options.kv_format} {options.context}")

    assert CliRunner().invoke(show, []).output == f"{EngineOptions().parallel} None f32 auto None\n"
    given = ["--parallel", "3", "--memory", "1KiB", "--dtype", "bf16", "--kv-format", "f32", "--context", "77"]
    assert CliRunner().invoke(show, given).output == "3 1024 bf16 f32 77\n"
