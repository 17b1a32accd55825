"""Memory for fine-tuning Gemma 3 by its size, computed from the architecture.

    python -m benchmarks.cost.gemma3_memory  # writes guides/how_to/sizes.md anew

Nothing is run for it. The tests compare it with what is known: the numbers of
parameters with those of KerasHub's presets, weights, adapters and activations with what
a small Gemma 3 has and keeps on PyTorch.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "guides" / "how_to" / "sizes.md"
BLOCK = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)
LENGTHS = (128, 256, 512, 1024)
BATCH_SIZE, RANK = 8, 8
VALUES, ACTIVE = 5 + 12 + 1, 3
"""Five tasks, twelve languages and one that is always active; three in each example."""


@dataclasses.dataclass(frozen=True)
class Gemma3:
    """The sizes of a Gemma 3 for text, by the names that KerasHub gives them."""

    num_layers: int
    hidden_dim: int
    intermediate_dim: int
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int = 256
    vocabulary_size: int = 262_144

    @property
    def query_dim(self) -> int:
        return self.num_query_heads * self.head_dim

    @property
    def key_dim(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def kernels(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the kernels of a block: attention, feed-forward."""
        hidden, inner = self.hidden_dim, self.intermediate_dim
        return [
            (hidden, self.query_dim),
            (hidden, self.key_dim),
            (hidden, self.key_dim),
            (self.query_dim, hidden),
            (hidden, inner),
            (hidden, inner),
            (inner, hidden),
        ]

    @property
    def kernel_parameters(self) -> int:
        """The parameters that are quantized: the kernels of all blocks."""
        return self.num_layers * sum(i * o for i, o in self.kernels)

    @property
    def parameters(self) -> int:
        """All of them: kernels, embeddings, and the scales of the norms."""
        scales = self.num_layers * (4 * self.hidden_dim + 2 * self.head_dim)
        embeddings = self.vocabulary_size * self.hidden_dim
        return self.kernel_parameters + embeddings + scales + self.hidden_dim

    def weight_bytes(self, dtype: str) -> float:
        """Of the base. int8 and int4 have kernels alone; the rest is bfloat16."""
        rest = 2 * (self.parameters - self.kernel_parameters)
        outputs = self.num_layers * sum(o for _, o in self.kernels)
        inputs = self.num_layers * sum(i for i, _ in self.kernels)
        groups = self.num_layers * sum(-(-i // 128) * o for i, o in self.kernels)
        kernels = {
            "bfloat16": 2 * self.kernel_parameters,
            # A scale per output.
            "int8": self.kernel_parameters + 2 * outputs,
            # A scale and a zero point per output and 128 inputs; an index of those.
            "int4": self.kernel_parameters / 2 + 3 * groups + 4 * inputs,
        }
        return rest + kernels[dtype]

    def adapter_bytes(self, values: int = VALUES, rank: int = RANK) -> int:
        """Of the adapter weights in float32, on all linear layers."""
        return 4 * values * rank * self.num_layers * sum(i + o for i, o in self.kernels)

    def kept_bytes(
        self,
        length: int,
        batch_size: int = BATCH_SIZE,
        rank: int = ACTIVE * RANK,
    ) -> int:
        """What a step in bfloat16 keeps of the forward pass, for the backward pass.

        As PyTorch does without fused attention: the inputs of norms and the weights of
        attention are kept in float32, those of kernels in bfloat16.

        Args:
            length: Tokens of a padded example: `sequence_length`.
            batch_size: Examples.
            rank: Of the updates of an example, added up over its features.
        """
        hidden, query, key = self.hidden_dim, self.query_dim, self.key_dim
        per_token = (
            (4 * 4 + 2 * 2) * hidden  # norms; inputs of attention and feed-forward
            + 4 * 2 * self.intermediate_dim  # gate, its activation, value, product
            + (4 + 2 + 2) * query  # before its norm; rotated; of the output kernel
            + (4 + 2 + 2) * key  # before its norm; rotated; values
            + (4 + 2) * self.num_query_heads * length  # weights of attention
            + length  # mask
            + 2 * len(self.kernels) * rank  # between A and B
        )
        # The kernels of attention are kept as they are multiplied, in another order.
        kernels = 2 * sum(i * o for i, o in self.kernels[:4])
        gathered = 2 * batch_size * rank * sum(i + o for i, o in self.kernels)
        blocks = batch_size * length * per_token + kernels + gathered
        return self.num_layers * blocks + 4 * self.vocabulary_size * batch_size * length

    def step_bytes(self, length: int, batch_size: int = BATCH_SIZE) -> int:
        """What a step takes besides weights: what is kept, and two more arrays of the
        size of the logits in float32, where the loss is computed."""
        logits = 4 * self.vocabulary_size * batch_size * length
        return self.kept_bytes(length, batch_size) + 2 * logits


SIZES = {
    "270m": Gemma3(18, 640, 2048, 4, 1),
    "1b": Gemma3(26, 1152, 6912, 4, 1),
    "4b_text": Gemma3(34, 2560, 10240, 8, 4),
    "12b_text": Gemma3(48, 3840, 15360, 16, 8),
}
"""By the end of the preset's name: `gemma3_1b` and `gemma3_instruct_1b` are alike."""


def rows() -> dict[str, list[str]]:
    """The rows of the table: what, and a text for each of `SIZES`."""
    sizes = SIZES.values()

    def gigabytes(*counts: float) -> list[str]:
        return [f"{count / 1e9:.2f}" for count in counts]

    found = {"parameters, in billions": gigabytes(*(s.parameters for s in sizes))}
    for dtype in ("bfloat16", "int8", "int4"):
        name = f"weights in {dtype}"
        found[name] = gigabytes(*(s.weight_bytes(dtype) for s in sizes))
    found["adapter weights"] = gigabytes(*(s.adapter_bytes() for s in sizes))
    found["their gradients, and Adam's averages"] = gigabytes(
        *(3 * s.adapter_bytes() for s in sizes)
    )
    for length in LENGTHS:
        found[f"a step at `sequence_length` {length}"] = gigabytes(
            *(s.step_bytes(length) for s in sizes)
        )
    for length in (LENGTHS[0], LENGTHS[-1]):
        found[f"**all, base in bfloat16, {length} tokens**"] = gigabytes(
            *(
                s.weight_bytes("bfloat16")
                + 4 * s.adapter_bytes()
                + s.step_bytes(length)
                for s in sizes
            )
        )
    return found


def table() -> str:
    """The table of the page, in Markdown; gigabytes of 10^9 bytes."""
    names = [f"`gemma3_{name}`" for name in SIZES]
    lines = [["GB", *names], ["---"] * (len(names) + 1)]
    lines += [[name, *cells] for name, cells in rows().items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """The page, with the table that is computed now."""
    return BLOCK.sub(rf"\g<1>{table()}\g<2>", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(table())
