"""What an engine says of itself when it serves. The digests read every file once; later starts know them by the files' times."""

from __future__ import annotations

from .digest import hash_files, serving_digest, source_digest
from .loading import LoadedEngine
from .plan import size_label
from .wire import Ready


def ready_frame(loaded: LoadedEngine, served_name: str) -> Ready:
    """The frame that ends the loading. Raises ModelLoadError where a file cannot be read any more."""
    intake, options, backend, plan = loaded.engine.intake, loaded.options, loaded.backend, loaded.plan
    hashes = hash_files(loaded.directory, loaded.home, weights=backend.weight_digests)
    return Ready(
        model=served_name,
        size=size_label(loaded.config),
        format=plan.format,
        backend=plan.backend,
        isa=backend.isa,
        backend_note=plan.note,
        max_model_len=intake.max_model_len,
        vocab_size=intake.tokenizer.vocab_size,
        max_running=options.parallel,
        capabilities=["completions", "logprobs", *(["chat", "tools"] if loaded.has_template else [])],
        source_digest=backend.source_digest or source_digest(loaded.directory, hashes=hashes),
        serving_digest=serving_digest(plan, hashes),
        determinism_class=backend.determinism_class,
        num_parameters=backend.num_parameters,
        planned_bytes=plan.by_pool(),
        allocated_bytes=backend.allocated_bytes,
        load_s=loaded.load_s,
        skipped_tensors=dict(backend.skipped),
    )
