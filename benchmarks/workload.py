"""What is measured: models by size, prompts and responses by task, and the cost that their shapes imply.

Standard library only: the peers' environments read this file too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

TASKS = {"imdb": (64, 48), "jigsaw": (8, 32), "rtp": (32, 32)}
"""prompt and response tokens of the paper's tasks (docs/method.md, section 3)"""


@dataclass(frozen=True)
class Workload:
    """One iteration's shapes. The policy is a GPT-2 of random weights, so that nothing is downloaded."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    batch: int
    prompt: int
    response: int
    reward_layers: int
    reward_hidden: int
    epochs: int = 4
    risk_level: float = 1.0
    precision: str = "32-true"
    frozen_layers: int = 0
    compile_sampling: bool = False
    generate_batch: int = 0
    """prompts that TRL 0.7.2's `generate` is to take at a time; 0 = all"""

    @property
    def kept(self) -> int:
        """⌈α′B⌉, the episodes that the update reads."""
        return math.ceil(round(self.risk_level * self.batch, 9))

    def forward_flops(self, rows: int, *, head_tokens: int) -> float:
        """Of `rows` whole sequences with the head on `head_tokens` positions a row: 2 a weight and token, + attention.

        Attention is counted in full, 4·S·H a token and layer, as kernels without a causal shortcut do it. The last
        layer's attention, its projection and its MLP, 18·H² a token, are counted where they are needed: on those
        positions and the one after them.
        """
        width = self.prompt + self.response
        trunk = width * self.layers * (24 * self.hidden**2 + 4 * width * self.hidden)
        trunk -= (width - head_tokens - 1) * (18 * self.hidden**2 + 4 * width * self.hidden)
        return float(rows * (trunk + 2 * head_tokens * self.hidden * self.vocabulary))

    @property
    def update_flops(self) -> float:
        """Of all epochs over the kept rows, backward = 2 × forward; nothing that is computed twice is counted twice.

        Frozen layers are not run; the head is tied to the embeddings, so that its weight then has no gradient.
        """
        above = replace(self, layers=self.layers - self.frozen_layers)
        flops = 3 * self.epochs * above.forward_flops(self.kept, head_tokens=self.response)
        unmade = 2 * self.epochs * self.kept * self.response * self.hidden * self.vocabulary
        return flops - unmade if self.frozen_layers else flops

    def to_dict(self) -> dict[str, int | float | str]:
        """Without settings that are not used: an older checkout may not know them."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value}


_LATER = ("frozen_layers", "compile_sampling", "generate_batch")

SIZES = {
    # the model; its reward is as much smaller as DistilBERT is than GPT-2
    "tiny": Workload(4, 256, 4, 8_000, batch=32, prompt=64, response=48, reward_layers=2, reward_hidden=256),
    "gpt2": Workload(12, 768, 12, 50_257, batch=16, prompt=64, response=48, reward_layers=6, reward_hidden=768),
}


def workload(size: str, task: str, **changes: int | float | str) -> Workload:
    """One of the table's rows: `size` model at the shapes of `task`, with single numbers replaced."""
    prompt, response = TASKS[task]
    return replace(SIZES[size], prompt=prompt, response=response, **changes)  # type: ignore[arg-type]
