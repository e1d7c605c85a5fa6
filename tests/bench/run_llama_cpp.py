"""One measurement of llama.cpp through llama-cpp-python, where no llama-bench is at hand. Prints {"samples_ts": [...]}.

python tests/bench/run_llama_cpp.py FILE.gguf --threads N [--prompt N] [--depth N] [--gen N] [--repetitions N]
"""

import argparse
import json
import time

from llama_cpp import Llama


def once(model, prompt, depth, generate):
    """Tokens a second of the prompt, or of what is generated after `depth` tokens. Only the last row has logits."""
    model.reset()
    if generate == 0:
        start = time.perf_counter()
        model.eval([100 + i % 1000 for i in range(max(prompt, 1))])
        return max(prompt, 1) / (time.perf_counter() - start)
    model.eval([100 + i % 1000 for i in range(max(depth, 1))])
    start = time.perf_counter()
    for token in range(generate):
        model.eval([100 + token])
    return generate / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description="llama-cpp-python, timed")
    parser.add_argument("model")
    for name, default in (("threads", 1), ("prompt", 0), ("depth", 0), ("gen", 0), ("repetitions", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = Llama(
        options.model, n_ctx=max(512, options.prompt + options.depth + options.gen + 8), n_batch=2048, n_ubatch=512,
        n_threads=options.threads, n_threads_batch=options.threads, verbose=False,
    )  # fmt: skip
    if options.repetitions:
        once(model, options.prompt, 0, min(options.gen, 2))
    samples = [once(model, options.prompt, options.depth, options.gen) for _ in range(max(options.repetitions, 1))]
    print(json.dumps({"samples_ts": samples}))


if __name__ == "__main__":
    main()
