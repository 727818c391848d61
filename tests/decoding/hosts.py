"""A tiny policy that decoding methods draw from, and prompts for it."""

from __future__ import annotations

from pathlib import Path

import torch

import train
from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.decoding.method import DecodingMethod, Host
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.sampling import SamplingSeed
from tests.datamodules.data_files import jigsaw_rows, write_csv
from tests.test_configs import QUIET, ROOT
from tests.test_sampling import PROMPTS, batch_of
from tests.tiny_models import causal_lm, save_classifier, save_policy, save_tokenizer

SEED = SamplingSeed(base=5)


def length_score(samples: Samples) -> torch.Tensor:
    """Any number that differs from response to response."""
    return torch.tensor([float(sum(map(ord, text)) % 97) for text in samples.responses])


def host_of(folder: Path, **sampling: float) -> Host:
    tokenizer = load_tokenizer(str(folder))
    config = PolicyConfig(pretrained=str(folder))
    return Host(
        policy=load_actor_critic(config, tokenizer),
        tokenizer=tokenizer,
        config=config,
        sampling=SamplingConfig(**{"max_new_tokens": 8, **sampling}),
        device=torch.device("cpu"),
        score=length_score,
    )


def drawn(method: DecodingMethod, host: Host, draw: int = 0, prompts: list[list[int]] = PROMPTS) -> Samples:
    method.load(host)
    return method.draw(batch_of(prompts), SamplingSeed(base=5, draw=draw))


def save_expert(folder: Path, seed: int, family: str = "gpt2") -> Path:
    """A model of the policy's vocabulary with weights of its own."""
    model = causal_lm(family)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_world(root: Path) -> Path:
    """Policy, reward, experts and Jigsaw data in one folder."""
    save_policy(root / "policy", context=64)
    save_classifier(root / "reward")
    save_expert(root / "expert", 0)
    save_expert(root / "anti", 1)
    save_policy(root / "other", pad="<another pad>")
    (root / "data").mkdir()
    write_csv(root / "data" / "train.csv", jigsaw_rows(60, 30))
    write_csv(root / "data" / "test.csv", jigsaw_rows(20, 20, start=1000))
    return root


def run(world: Path, folder: Path, *arguments: str, command: str = "test") -> None:
    """Evaluate by the real command line; `arguments` choose the method."""
    train.main(
        [
            *(command, "--config", str(ROOT / "configs" / "jigsaw.yaml"), *QUIET),
            *("--model", "DecodingModule", "--model.policy.pretrained", str(world / "policy")),
            *("--model.reward.pretrained", str(world / "reward"), "--trainer.callbacks", "[]"),
            *(
                "--data.path",
                str(world / "data"),
                "--data.progress",
                "false",
                "--data.val_size",
                "0",
                "--data.batch_size",
                "8",
            ),
            *("--model.evaluation.resamples", "50", "--model.sampling.max_new_tokens", "6"),
            *("--trainer.default_root_dir", str(folder), *arguments),
        ]
    )
