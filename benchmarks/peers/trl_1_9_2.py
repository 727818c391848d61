"""TRL 1.9.2's worker, run by that environment's own Python: `trl.experimental.ppo`, the last release that has PPO.

Its critic is a second whole network and its reward reads tokens; both are what its trainer asks for. Gradient
checkpointing, on by default there, is off: without it TRL is faster.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.serve import Turns
from benchmarks.workload import Workload

TURNS_AT_MOST = 10_000


class TakeTurns(TrainerCallback):
    """Blocks between iterations until the other side gives a turn."""

    def __init__(self, turns: Turns, tokens: int) -> None:
        self.turns = turns
        self.tokens = tokens

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.turns.ready()
        self._next()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.turns.done({}, response_tokens=self.tokens)
        self._next()

    def _next(self) -> None:
        if not self.turns.wait():
            os._exit(0)


def main(folder: str, work: Workload) -> None:
    """Serve turns until the other side closes the line."""
    tokenizer = AutoTokenizer.from_pretrained(folder + "/policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder + "/policy") for _ in range(2))
    critic = AutoModelForSequenceClassification.from_pretrained(folder + "/policy", num_labels=1)
    reward = AutoModelForSequenceClassification.from_pretrained(folder + "/reward")
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, work.vocabulary, (work.batch, work.prompt), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        settings = PPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=work.batch,
            local_rollout_forward_batch_size=work.batch,
            num_ppo_epochs=work.epochs,
            total_episodes=TURNS_AT_MOST * work.batch,
            response_length=work.response,
            temperature=1.0,
            bf16=work.precision == "bf16-mixed",
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        PPOTrainer(
            settings,
            tokenizer,
            policy,
            reference,
            reward,
            Dataset.from_dict({"input_ids": prompts}),
            critic,
            eval_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[TakeTurns(Turns(), work.batch * work.response)],
        ).train()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main(sys.argv[1], Workload(**json.loads(sys.argv[2])))
