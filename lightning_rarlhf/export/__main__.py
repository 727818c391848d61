"""``python -m lightning_rarlhf.export RUN/checkpoints/last.ckpt FOLDER``: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from lightning_rarlhf.checkpoints.sharded_checkpoint import whole_checkpoint
from lightning_rarlhf.checkpoints.trained_weights import require_trained
from lightning_rarlhf.config import LoRAConfig, PolicyConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.export import Form, export_policy
from lightning_rarlhf.loading.model_folder import require_replaceable
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.records.provenance import training_of_checkpoint
from lightning_rarlhf.terminal.one_line_parser import OneLineParser
from lightning_rarlhf.terminal.quiet import quiet


def export_checkpoint(checkpoint: Path, folder: Path, form: Form, pretrained: str | None) -> None:
    """Build the policy that a checkpoint belongs to, give it the checkpoint's weights and export it.

    Args:
        checkpoint: a file that `fit` wrote, or a folder of FSDP2's shards.
        folder: what to write; a saved model there is replaced once the copy is proven.
        form: the whole model, or the adapter alone.
        pretrained: where the starting policy is now, if it was moved; None = where the run found it.

    Raises:
        UserError: no checkpoint of a policy, a damaged one, or its weights are not those of the policy; `folder` holds
            something that is no saved model, or the starting policy.
    """
    require_replaceable(folder)
    content = _of_policy(checkpoint)
    policy = _policy_of(content["policy"])
    if pretrained is not None:
        policy = replace(policy, pretrained=pretrained)
    require_replaceable(folder, policy.pretrained)
    tokenizer = load_tokenizer(policy.pretrained, policy.revision)
    holder = nn.ModuleDict({"actor": load_actor_critic(policy, tokenizer)})
    weights = {name: value for name, value in content["state_dict"].items() if name.startswith("actor.")}
    require_trained(holder, weights, trains_part=policy.trains_part)
    holder.load_state_dict(weights, strict=False)
    actor: Any = holder["actor"]
    export_policy(
        actor,
        tokenizer,
        folder,
        with_critic=content["trains_critic"],
        form=form,
        policy=policy,
        training=training_of_checkpoint(content, checkpoint),
    )


def _of_policy(checkpoint: Path) -> dict[str, Any]:
    content = whole_checkpoint(checkpoint)
    if not {"policy", "state_dict", "trains_critic"} <= content.keys():
        raise UserError(f"{checkpoint}: holds no policy that can be exported, or is of a version before this one")
    return content


def _policy_of(settings: dict[str, Any]) -> PolicyConfig:
    lora = settings["lora"]
    return PolicyConfig(**{**settings, "lora": None if lora is None else LoRAConfig(**lora)})


def main(args: Sequence[str] | None = None) -> int:
    """Parse `args` (none = the command line) and export; 2 and one line on the error stream for a mistake."""
    parser = OneLineParser(prog="python -m lightning_rarlhf.export", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("checkpoint", type=Path, help="file or folder of shards that fit wrote")
    parser.add_argument("folder", type=Path, help="what to write")
    parser.add_argument("--form", choices=get_args(Form), default="merged", help="whole model, or its adapter alone")
    parser.add_argument("--pretrained", help="the starting policy, if it is not where the run found it")
    asked = parser.parse_args(args)
    quiet()
    try:
        export_checkpoint(asked.checkpoint, asked.folder, asked.form, asked.pretrained)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"exported {asked.checkpoint} to {asked.folder}\n")
    return 0


_Formatter = argparse.ArgumentDefaultsHelpFormatter


if __name__ == "__main__":
    raise SystemExit(main())
