"""Random tensors in the block formats of GGUF files, made as bytes.

A published file is quantised from real weights; its speed depends on the formats and shapes alone, so random codes under a
scale that gives the weights a plausible size serve as well and cost nothing. Codes are drawn uniformly; scales keep the
standard deviation near `STD`, so that activations stay far from infinities and denormals.
"""

from dataclasses import dataclass

import numpy as np

STD = 0.02
BLOCK = 256  # values of a K block


@dataclass(frozen=True)
class Format:
    """One tensor type: its number in the file, values and bytes of a block, bytes before the blocks of each row.

    `halves` and `floats` are (byte offset, value) written into every block (half) or before every row (f32).
    """

    name: str
    number: int
    values: int
    size: int
    row_size: int = 0
    halves: tuple[tuple[int, float], ...] = ()
    floats: tuple[tuple[int, float], ...] = ()

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises ValueError if the columns are no whole blocks."""
        if columns % self.values:
            raise ValueError(f"{columns} columns are no whole blocks of {self.values} for {self.name}")
        return self.row_size + columns // self.values * self.size


# Standard deviation of uniform codes: 4 bits 4.6, 5 bits 9.2, 6 bits 18.5, 8 bits 74; of a 6-bit scale about 18, of an
# 8-bit one 74; of the non-linear 4- and 5-bit levels about 70. The numbers are ggml's; from 137 on, ik_llama.cpp's.
FORMATS = {
    format.name: format
    for format in (
        Format("F32", 0, 1, 4),
        Format("BF16", 30, 1, 2),
        Format("Q4_0", 2, 32, 18, halves=((0, STD / 4.6),)),
        Format("Q8_0", 8, 32, 34, halves=((0, STD / 74),)),
        Format("Q6_K", 14, BLOCK, 210, halves=((208, STD / (18.5 * 74)),)),
        Format("IQ5_K", 140, BLOCK, 176, halves=((0, STD / (70 * 18)),)),
        Format("IQ4_KS", 144, BLOCK, 136, row_size=4, floats=((0, STD / (70 * 74)),)),
    )
}


def random_rows(format: Format, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """[rows][row_bytes] uint8."""
    if format.name == "F32":
        return (rng.standard_normal((rows, columns), np.float32) * np.float32(STD)).view(np.uint8)
    if format.name == "BF16":  # a sign, the exponents of 2^-9 to 2^-6, any mantissa
        drawn = rng.integers(0, 1 << 16, (rows, columns), np.uint16)
        return ((drawn & 0x81FF) | np.uint16(0x3B00)).view(np.uint8)
    bytes_a_row = format.row_bytes(columns)
    out = rng.integers(0, 1 << 64, -(-rows * bytes_a_row // 8), np.uint64).view(np.uint8)[: rows * bytes_a_row]
    out = out.reshape(rows, bytes_a_row)
    for offset, value in format.floats:
        out[:, offset : offset + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
    blocks = out[:, format.row_size :].reshape(rows, columns // format.values, format.size)
    for offset, value in format.halves:
        blocks[:, :, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return out
