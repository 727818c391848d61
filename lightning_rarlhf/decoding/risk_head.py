"""RECT's value head: how likely a text is to end badly after each possible next token, from the policy's own states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.one_move import in_one_move, or_say_why
from lightning_rarlhf.terminal.plain_text import first_line

RISK_HEAD_FILE = "risk_head.safetensors"
"""what `RectModule` writes into its run's folder"""
_POLICY = "policy_sha256"


class RiskHead(nn.Module):
    """logit q(s, a) = e_a · (W h_s + v) + u · h_s + b; e_a is the token's row of the policy's frozen output layer.

    Tokens share W through their embeddings, so one that was never drawn gets the risk of those like it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_token = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.of_state = nn.Linear(hidden_size, 1, dtype=torch.float32)
        for parameter in self.parameters():  # every risk is 1/2 until something is learned
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Of every token: [..., H], [V, H] → f32 [..., V]."""
        return self.from_products(hidden, self.direction(hidden) @ embeddings.float().T)

    def direction(self, hidden: Tensor) -> Tensor:
        """W h_s + v: [..., H] → f32 [..., H]."""
        direction: Tensor = self.of_token(hidden.float())
        return direction

    def from_products(self, hidden: Tensor, products: Tensor) -> Tensor:
        """Of every token, given e_a · `direction`: [..., H], [..., V] → f32 [..., V]."""
        logits: Tensor = products.float() + self.of_state(hidden.float())
        return logits

    def of_tokens(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Of one token a state: [..., H], [..., H] → f32 [...]."""
        hidden = hidden.float()
        logits: Tensor = (self.of_token(hidden) * embeddings.float()).sum(dim=-1) + self.of_state(hidden).squeeze(-1)
        return logits


def save_risk_head(head: RiskHead, path: Path, *, policy_sha256: str) -> None:
    """Write the head's weights and the hash of the policy's that it was fitted on, all or nothing.

    Raises:
        WriteError: the disk is full, permission is missing, ...; a former file is as it was.
    """
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    with or_say_why(path), in_one_move(path) as partial:
        partial.write_bytes(save(weights, metadata={_POLICY: policy_sha256}))


def risk_head_file(name: str) -> Path:
    """The file `name`, or the one that `RectModule` wrote into the run folder of that name.

    Raises:
        ModelError: no such file.
    """
    path = Path(name).expanduser()
    path = path / RISK_HEAD_FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{path}: no such file; fit RectModule and give its run folder as model.method.head")
    return path


def load_risk_head(name: str, hidden_size: int) -> tuple[RiskHead, str | None]:
    """The frozen head in file `name`, or in the run folder of that name, and the hash of its policy's weights.

    The hash is None in a file that was written before heads told it.

    Raises:
        ModelError: no such file, or a head for a policy of another size.
    """
    from safetensors import safe_open

    path = risk_head_file(name)
    head = RiskHead(hidden_size)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
            fitted_on = (file.metadata() or {}).get(_POLICY)
    except Exception as error:  # the library's own class, which is no part of its interface
        raise ModelError(f"{path}: cannot be read ({first_line(error)}); fit RectModule again") from None
    expected = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in weights.items()}
    if got != expected:
        raise ModelError(
            f"{path}: made for another policy; its weights are {got}, this policy's would be {expected}; fit "
            "RectModule on this policy"
        )
    head.load_state_dict(weights)
    return head.requires_grad_(False).eval(), fitted_on
