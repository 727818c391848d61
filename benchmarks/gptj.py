"""GPT-J 6B of random weights through configs/gptj: peak memory beside its estimate, and tokens a second.

    python -m benchmarks.gptj                 # one GPU (fsdp2: all GPUs of the machine); 13 GB of disk
    python -m benchmarks.gptj --size tiny     # on a CPU, to see that this program works
    python -m benchmarks.gptj --configs lora_8bit --model.policy.quantization 4bit

Nothing is downloaded: weights, tokenizer, reward model and reviews are made on the spot, in the sizes of GPT-J, of
DistilBERT and of IMDB-Gen. Options that are not named below go to `train.py fit`. Each configuration is trained by a
process of its own; its first iteration warms up, and its seconds do not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peak import RESULT
from lightning_rarlhf.terminal.plain_text import visible

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("lora_bf16", "lora_8bit", "fsdp2")
SIZES: dict[str, dict[str, Any]] = {
    "6b": {"policy": {}, "reward": {}, "prompt": 64, "response": 48},
    "tiny": {
        "policy": {"n_layer": 2, "n_embd": 64, "n_head": 4, "rotary_dim": 8, "vocab_size": 500},
        "reward": {"n_layers": 1, "dim": 64, "hidden_dim": 128, "n_heads": 4, "vocab_size": 500},
        "prompt": 12,
        "response": 8,
    },
}
"""what differs from the defaults of transformers' GPTJConfig, which is GPT-J 6B, and DistilBertConfig; tokens"""


def main(args: Sequence[str] | None = None) -> None:
    """Make the models, train each configuration, print the table."""
    options, more = _parse(args)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        world = Path(scratch)
        make_world(world, options.size)
        lines = []
        for config in options.configs:
            arguments = [*arguments_of(world, options.size, config, options.iterations), *more]
            words = [sys.executable, "-m", "train", "fit", *arguments]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                lines.append(f"{config}: {visible(said[-1]) if said else f'exit status {done.returncode}'}")
                continue
            lines.append(line(config, json.loads((world / config / RESULT).read_text()), estimated(arguments)))
            print(lines[-1], file=sys.stderr)
    print(_HEADER, *lines, sep="\n")
    if options.size == "tiny":
        print("tiny: what is measured is the libraries, not the model; the estimate cannot be judged by it")


def _parse(args: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="6b")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the models are written for the time being; none = TMPDIR")
    return parser.parse_known_args(args)


_HEADER = "configuration | estimated MiB | measured MiB | estimate / measured | s/iteration | response tokens/s"


def line(config: str, measured: dict[str, Any], estimate: int) -> str:
    """One row of the table; seconds are the median over all iterations but the first."""
    later = measured["iterations"][1:] or measured["iterations"]
    seconds = median(entry["seconds"] for entry in later)
    rate = median(entry["tokens"] / entry["seconds"] for entry in later)
    peak = measured["peak"]
    figures = (
        f"{estimate / 2**20:.1f}",
        f"{peak / 2**20:.1f}",
        f"{estimate / peak:.2f}",
        f"{seconds:.2f}",
        f"{rate:.0f}",
    )
    return " | ".join((f"{config} ({measured['device']})", *figures))


def estimated(arguments: Sequence[str]) -> int:
    """Bytes, by `python -m lightning_rarlhf.memory`, for as many processes as there are GPUs under FSDP2."""
    import torch

    from lightning_rarlhf.memory.__main__ import run_of
    from lightning_rarlhf.memory.estimate import estimate

    divided = any(word.endswith("fsdp2.yaml") for word in arguments)
    return estimate(run_of(arguments, max(1, torch.cuda.device_count()) if divided else 1)).worst[1]


def arguments_of(world: Path, size: str, config: str, iterations: int) -> list[str]:
    """Of `train.py fit`: the shipped configuration on the models of `world`."""
    schedule = {"class_path": "RiskSchedule", "init_args": {"risk_level": 0.4, "warmup": 0, "rho": 0.5}}
    peak = {"class_path": "benchmarks.peak.Peak", "init_args": {"folder": str(world / config)}}
    files = ("imdb.yaml", f"gptj/{config}.yaml")
    return [
        *(part for name in files for part in ("--config", str(ROOT / "configs" / name))),
        *("--model.policy.pretrained", str(world / "policy"), "--model.reward.pretrained", str(world / "reward")),
        *("--model.sampling.max_new_tokens", str(SIZES[size]["response"])),
        *("--data.path", str(world), "--data.prompt_tokens", str(SIZES[size]["prompt"]), "--data.val_size", "0"),
        *("--data.progress", "false", "--checkpoint.monitor", "null", "--trainer.limit_val_batches", "0"),
        *("--trainer.max_steps", str(iterations), "--trainer.default_root_dir", str(world / config)),
        *("--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false", "--trainer.callbacks", json.dumps([schedule, peak])),
    ]


def make_world(folder: Path, size: str) -> None:
    """`folder`/policy and /reward, of random weights, and reviews of random words."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPTJConfig, GPTJForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from benchmarks.models import save_tokenizer

    disable_progress_bar()
    shape = SIZES[size]
    policy = GPTJConfig(**shape["policy"], bos_token_id=0, eos_token_id=0)
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    reward = DistilBertConfig(**({"vocab_size": policy.vocab_size} | shape["reward"]), **names, pad_token_id=0)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # 6 billion random numbers
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            lm = GPTJForCausalLM(policy)
    finally:
        torch.set_default_dtype(dtype)
    lm.save_pretrained(folder / "policy")
    del lm
    torch.cuda.empty_cache()
    DistilBertForSequenceClassification(reward).save_pretrained(folder / "reward")
    save_tokenizer(folder / "policy", policy.vocab_size)
    save_tokenizer(folder / "reward", reward.vocab_size, context=512)
    _save_reviews(folder, policy.vocab_size)


def _save_reviews(folder: Path, vocabulary: int) -> None:
    import pyarrow
    from pyarrow import parquet

    for split, rows in (("train", 256), ("test", 16)):
        texts = [" ".join(f"w{1 + (7919 * n + 31 * k) % (vocabulary - 1)}" for k in range(100)) for n in range(rows)]
        table = pyarrow.table({"text": texts, "label": [1] * rows})
        parquet.write_table(table, folder / f"{split}.parquet")


if __name__ == "__main__":
    main()
