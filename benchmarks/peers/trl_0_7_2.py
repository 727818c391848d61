"""TRL 0.7.2's worker, run by that environment's own Python: `generate`, score, `PPOTrainer.step`, as its examples do.

It is the library that the paper's authors built on. Their mask drops episodes from the loss only, so an iteration costs
the same at every risk level. They leave `generate` its default, batches of 4 prompts; here it takes all in one batch,
which is faster, where the workload says nothing else.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from benchmarks.serve import Phases, Turns
from benchmarks.workload import Workload


def main(folder: str, work: Workload) -> None:
    """Serve turns until the other side closes the line."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(  # the saved settings name a class of transformers 5
        tokenizer_file=folder + "/policy/tokenizer.json", eos_token="<eos>", bos_token="<eos>", pad_token="<eos>"
    )
    if work.precision == "bf16-mixed":
        Accelerator(mixed_precision="bf16")  # loading a model would set up the state of one without
    policy, reference = (AutoModelForCausalLMWithValueHead.from_pretrained(folder + "/policy") for _ in range(2))
    reward = AutoModelForSequenceClassification.from_pretrained(folder + "/reward").eval()
    trainer = PPOTrainer(
        PPOConfig(
            batch_size=work.batch,
            mini_batch_size=work.batch,
            ppo_epochs=work.epochs,
            accelerator_kwargs={"mixed_precision": "bf16"} if work.precision == "bf16-mixed" else {},
        ),
        policy,
        reference,
        tokenizer,
    )
    generator = torch.Generator().manual_seed(1)
    prompts = list(torch.randint(1, work.vocabulary, (work.batch, work.prompt), generator=generator))
    settings = {
        "batch_size": work.generate_batch or work.batch,
        "max_new_tokens": work.response,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": tokenizer.pad_token_id,
    }
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16-mixed")

    def sample() -> list[torch.Tensor]:
        with autocast:
            return trainer.generate(prompts, return_prompt=False, **settings)

    @torch.no_grad()
    def score(responses: list[torch.Tensor]) -> list[torch.Tensor]:
        texts = tokenizer.batch_decode(
            [torch.cat(pair) for pair in zip(prompts, responses, strict=True)], skip_special_tokens=True
        )
        with autocast:
            return list(reward(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].float())

    phases, turns = Phases(), Turns()
    sample, score = phases.timed("sample", sample), phases.timed("score", score)
    turns.ready()
    while turns.wait():
        responses = sample()
        statistics = trainer.step(prompts, responses, score(responses))
        turns.done(
            {
                **phases.take(),
                "old_logprobs+reference": statistics["time/ppo/forward_pass"],
                "update": statistics["time/ppo/optimize_step"],
            },
            response_tokens=sum(map(len, responses)),
        )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main(sys.argv[1], Workload(**json.loads(sys.argv[2])))
