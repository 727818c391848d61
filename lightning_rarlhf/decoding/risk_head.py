"""RECT's value head: how likely a text is to end badly after each possible next token, from the policy's own states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.one_move import in_one_move

RISK_HEAD_FILE = "risk_head.safetensors"
"""what `RectModule` writes into its run's folder"""


class RiskHead(nn.Module):
    """logit q(s, a) = e_a · (W h_s + v) + u · h_s + b; e_a is the token's row of the policy's frozen output layer.

    Tokens share W through their embeddings, so one that was never drawn gets the risk of those like it. One product
    with the output layer is all that it adds to a step.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_token = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.of_state = nn.Linear(hidden_size, 1, dtype=torch.float32)
        for parameter in self.parameters():  # every risk is 1/2 until something is learned
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Of every token: [..., H], [V, H] → f32 [..., V]."""
        hidden = hidden.float()
        logits: Tensor = self.of_token(hidden) @ embeddings.float().T + self.of_state(hidden)
        return logits

    def of_tokens(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Of one token a state: [..., H], [..., H] → f32 [...]."""
        hidden = hidden.float()
        logits: Tensor = (self.of_token(hidden) * embeddings.float()).sum(dim=-1) + self.of_state(hidden).squeeze(-1)
        return logits


def save_risk_head(head: RiskHead, path: Path) -> None:
    """Write the head's weights, all or nothing."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    with in_one_move(path) as partial:
        partial.write_bytes(save(weights))


def load_risk_head(name: str, hidden_size: int) -> RiskHead:
    """The frozen head in file `name`, or in the run folder of that name.

    Raises:
        ModelError: no such file, or a head for another policy.
    """
    from safetensors.torch import load_file

    path = Path(name).expanduser()
    path = path / RISK_HEAD_FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{path}: no such file; fit RectModule and give its run folder as model.method.head")
    head = RiskHead(hidden_size)
    try:
        weights = load_file(path)
    except Exception as error:  # the library's own class, which is no part of its interface
        raise ModelError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fit RectModule again") from None
    expected = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in weights.items()}
    if got != expected:
        raise ModelError(
            f"{path}: made for another policy; its weights are {got}, this policy's would be {expected}; fit "
            "RectModule on this policy"
        )
    head.load_state_dict(weights)
    return head.requires_grad_(False).eval()
