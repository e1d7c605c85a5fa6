"""What one token asks of the machine at the least, from the sizes of the model and of our formats (kernels/cpu/layout.h).

Bytes of a decoded token: every layer's matrices, the head's scan, the recurrent states (read once, rewritten once in sixteen
tokens) with their open chunks, keys and values up to the depth. Norms, gates' vectors and the embedding's row are below one
percent and left out. Operations of a prompt's token: two for each weight of the layers' matrices.
"""

from collections.abc import Iterator

from rows import Work

from shoal.runtime.config import ModelConfig

BLOCK_BYTES = {"int4": 4416, "int8": 8256, "bf16": 16384}  # 32 rows x 256 columns
SCAN = {"int4": "int4", "int8": "int4", "bf16": "int8"}  # format of the model -> of its head's scan
CHUNK = 16


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def matrix_bytes(format: str, rows: int, columns: int) -> int:
    return padded(rows, 32) // 32 * (padded(columns, 256) // 256) * BLOCK_BYTES[format]


def matrices(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(rows, columns) of every quantised matrix of the layers, fused as they are stored."""
    hidden = config.hidden_size
    for layer in range(config.num_layers):
        if layer in config.attention_layers:
            yield 2 * config.query_dim + 2 * config.key_value_dim, hidden
            yield hidden, config.query_dim
        else:
            yield config.conv_dim + config.linear_value_dim, hidden
            yield hidden, config.linear_value_dim
        yield 2 * config.intermediate_size, hidden
        yield hidden, config.intermediate_size


def state_bytes(config: ModelConfig) -> float:
    """Read and written for one token of one sequence: each state, its open chunk, a sixteenth of its update."""
    state = config.linear_key_head_dim * config.linear_value_head_dim * 4
    chunk = CHUNK * (config.linear_key_head_dim + config.linear_value_head_dim) * 4
    heads = len(config.linear_layers) * config.linear_num_value_heads
    return heads * (state + chunk + state / CHUNK)


def gates_bytes(config: ModelConfig) -> int:
    """The gates of Gated DeltaNet stay bf16 in every format."""
    return len(config.linear_layers) * matrix_bytes("bf16", 2 * config.linear_num_value_heads, config.hidden_size)


def work_of(config: ModelConfig, format: str, depth: int) -> Work:
    """Depth: tokens whose keys and values (bf16) are read."""
    layers = sum(matrix_bytes(format, rows, columns) for rows, columns in matrices(config))
    head = matrix_bytes(SCAN[format], config.vocab_size, config.hidden_size)
    cache = 2 * 2 * config.key_value_dim * len(config.attention_layers) * depth
    return Work(
        token_bytes=layers + gates_bytes(config) + head + state_bytes(config) + cache,
        token_operations=2 * sum(rows * columns for rows, columns in matrices(config)),
    )
