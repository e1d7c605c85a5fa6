"""What an engine says of itself when it serves. The digests read every file once more, so only who needs them waits."""

from __future__ import annotations

from .digest import determinism_class, hash_files, serving_digest, source_digest
from .loading import LoadedEngine
from .plan import size_label
from .wire import Ready


def ready_frame(loaded: LoadedEngine, served_name: str) -> Ready:
    """The frame that ends the loading. Raises ModelLoadError where a file cannot be read any more."""
    intake, options = loaded.engine.intake, loaded.options
    hashes = hash_files(loaded.directory)
    return Ready(
        model=served_name,
        size=size_label(loaded.model.config),
        format="bf16" if options.format == "auto" else options.format,
        backend=options.resolved_backend,
        max_model_len=intake.max_model_len,
        vocab_size=intake.tokenizer.vocab_size,
        max_running=options.parallel,
        capabilities=["completions", "logprobs", *(["chat", "tools"] if loaded.has_template else [])],
        source_digest=source_digest(loaded.directory, hashes=hashes),
        serving_digest=serving_digest(loaded.directory, options, hashes=hashes),
        determinism_class=determinism_class(),
        num_parameters=loaded.model.num_parameters,
        planned_bytes=loaded.plan.by_pool(),
        allocated_bytes={"weights": loaded.model.weight_nbytes, **loaded.cache.nbytes},
        load_s=loaded.load_s,
        skipped_tensors=dict(loaded.model.skipped),
    )
