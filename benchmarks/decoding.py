"""What decoding-time methods cost: each method's time for a batch against the sum of its parts', turn by turn.

    python -m benchmarks.decoding --pairs 5
    python -m benchmarks.decoding --clock cpu      # seconds of this process alone, for a machine that others use too

The parts are plain cached decoding loops of the same number of tokens, one for each forward pass per token that the
method states. Networks are random, of GPT-2's architecture; every response is cut at the same length.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.best_of_k import BestOfK
from lightning_rarlhf.decoding.dexperts import DExperts
from lightning_rarlhf.decoding.gedi import GeDi
from lightning_rarlhf.decoding.method import DecodingMethod, Host
from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.decoding.prompted import Prompted
from lightning_rarlhf.decoding.rect import Rect
from lightning_rarlhf.decoding.risk_head import RISK_HEAD_FILE, RiskHead, save_risk_head
from lightning_rarlhf.decoding.self_debias import SelfDebias
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.records.results_file import weights_sha256
from lightning_rarlhf.sampling import SamplingSeed

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Parse the shapes, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "layers": 4,
        "width": 256,
        "vocabulary": 8000,
        "batch": 32,
        "prompt": 32,
        "tokens": 32,
        "pairs": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--methods", default="", metavar="A,B", help="class names; none = all")
    shape = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host, methods = prepare(Path(folder), shape)
        plain = Plain()
        plain.load(host)
        print(f"{shape.layers} layers x {shape.width}, V = {shape.vocabulary}, B = {shape.batch}, ", end="")
        print(f"{shape.prompt} + {shape.tokens} tokens, {torch.get_num_threads()} threads, ", end="")
        print(f"{host.device}, {shape.clock} time")
        print(f"{'method':12} {'passes':>6} {'measured':>8} {'parts s':>8} {'method s':>8} {'ratio':>6}  (medians)")
        wanted = [name for name in shape.methods.split(",") if name]
        for method in methods:
            if wanted and type(method).__name__ not in wanted:
                continue
            method.load(host)
            print_row(method, plain, prompts(shape), shape.pairs, CLOCKS[shape.clock])


def prepare(folder: Path, shape: argparse.Namespace) -> tuple[Host, list[DecodingMethod]]:
    """Networks on disk, a policy, and every method with settings of its paper."""
    names = {name: str(folder / name) for name in ("policy", "expert", "anti_expert")}
    for seed, path in enumerate(names.values()):
        save_model(Path(path), shape, seed)
    tokenizer = load_tokenizer(names["policy"])
    config = PolicyConfig(pretrained=names["policy"])
    host = Host(
        policy=load_actor_critic(config, tokenizer),
        tokenizer=tokenizer,
        config=config,
        # no end of text before the last token: every loop has the same number of steps
        sampling=SamplingConfig(max_new_tokens=shape.tokens, min_new_tokens=shape.tokens),
        device=torch.device("cpu"),
        score=lambda samples: torch.zeros(len(samples)),
    )
    policy_sha256 = weights_sha256(host.policy.lm)
    save_risk_head(RiskHead(shape.width), folder / RISK_HEAD_FILE, policy_sha256=policy_sha256)
    instruction = " ".join(f"w{number}" for number in range(10, 20))
    return host, [
        Plain(),
        Prompted(instruction),
        DExperts(names["expert"], names["anti_expert"]),
        GeDi(names["expert"], "w5", "w6"),
        SelfDebias([instruction]),
        Rect(str(folder)),
        BestOfK(4),
    ]


def save_model(folder: Path, shape: argparse.Namespace, seed: int) -> None:
    """A random GPT-2 with a word-level tokenizer: w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=max(1, shape.width // 64),
        bos_token_id=1,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {"<unk>": 0, "<eos>": 1, "<pad>": 2} | {f"w{number}": number for number in range(3, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)


def prompts(shape: argparse.Namespace) -> PromptBatch:
    """Random prompts of full length."""
    ids = torch.randint(3, shape.vocabulary, (shape.batch, shape.prompt), generator=torch.Generator().manual_seed(0))
    return PromptBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        index=torch.arange(shape.batch),
        prompts=("",) * shape.batch,
        labels=torch.full((shape.batch,), -1),
        source_scores=torch.full((shape.batch,), torch.nan),
    )


def print_row(
    method: DecodingMethod, plain: DecodingMethod, batch: PromptBatch, pairs: int, clock: Callable[[], float]
) -> None:
    """Time method and parts in turn, so that a busy machine slows both; the first turn warms up."""
    passes = round(method.forward_passes_per_token)
    seed = SamplingSeed(base=0)
    turns = []
    for _ in range(pairs + 1):
        parts = sum(seconds(lambda: plain.draw(batch, seed), clock) for _ in range(passes))
        turns.append((parts, seconds(lambda: method.draw(batch, seed), clock)))
    parts, whole = (statistics.median(column) for column in zip(*turns[1:], strict=True))
    ratio = statistics.median(whole / parts for parts, whole in turns[1:])
    name, measured = type(method).__name__, method.passes.per_token
    print(f"{name:12} {passes:6} {measured:8.3f} {parts:8.2f} {whole:8.2f} {ratio:6.2f}", flush=True)


def seconds(draw: Callable[[], Samples], clock: Callable[[], float]) -> float:
    """Time of one call."""
    start = clock()
    draw()
    return clock() - start


if __name__ == "__main__":
    main()
