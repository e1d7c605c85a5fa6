"""One measurement of transformers, as its ordinary user runs it: bf16 on the CPU. Prints {"samples_ts": [...]}.

python tests/bench/run_transformers.py DIR --threads N [--prompt N] [--depth N] [--gen N] [--repetitions N]
"""

import argparse
import json
import time
import warnings

import torch
from transformers import AutoModelForCausalLM, logging


def once(model, prompt, depth, generate):
    """Tokens a second of the prompt, or of what is generated after `depth` tokens."""
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        if generate == 0:
            ids = torch.randint(vocabulary, (1, max(prompt, 1)))
            start = time.perf_counter()
            model(ids, use_cache=True, logits_to_keep=1)
            return ids.shape[1] / (time.perf_counter() - start)
        out = model(torch.randint(vocabulary, (1, max(depth, 1))), use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(generate):
            ids = out.logits[:, -1:].argmax(-1)
            out = model(ids, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        return generate / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description="transformers, timed")
    parser.add_argument("model")
    for name, default in (("threads", 1), ("prompt", 0), ("depth", 0), ("gen", 0), ("repetitions", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    if options.repetitions:  # the first use of everything
        once(model, min(options.prompt, 64), 0, min(options.gen, 2))
    samples = [once(model, options.prompt, options.depth, options.gen) for _ in range(max(options.repetitions, 1))]
    print(json.dumps({"samples_ts": samples}))


if __name__ == "__main__":
    main()
