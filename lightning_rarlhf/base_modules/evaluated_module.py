"""Validation, test and predict: the same numbers and the same two files, whatever the responses are drawn with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_rarlhf.base_modules.evaluation import report
from lightning_rarlhf.base_modules.guarded_module import GuardedModule
from lightning_rarlhf.base_modules.perplexity import ResponsePerplexity, text_perplexities
from lightning_rarlhf.base_modules.scoring_ahead import ScoringAhead
from lightning_rarlhf.base_modules.validation import ValidationSummary
from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.cached_decoding.compiled_decoding import CompiledDecoder, CompiledDecoding
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, Judge, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.distributed import gather_items, rank, world_size
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.records.generations import Completions, GenerationWriter, read_rows, rows_by_prompt
from lightning_rarlhf.records.results_file import GENERATIONS, PREDICTIONS, texts_identity
from lightning_rarlhf.reference import FrozenModel, Reference
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.rollout import Sampler, score
from lightning_rarlhf.sampling import SamplingSeed, finish_reasons, sample
from lightning_rarlhf.trainer.sharding import unsharded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class _DiscardUnfinished(Callback):
    """An evaluation that fails anywhere, in its data loader as well, leaves no unfinished file."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, EvaluatedModule)
        pl_module.discard_unfinished()


class EvaluatedModule(GuardedModule):
    """Generates, scores and compares with the reference; how the networks come about is left to the subclass.

    Attributes:
        actor: the network that responses are drawn from.
        reference: the frozen network that KL is measured against, out of checkpoints and optimizers; None in a `fit`
            that measures no KL.
        tokenizer: the actor's.
    """

    actor: ActorCritic
    reference: Reference | None
    tokenizer: Any

    def __init__(
        self, reward: RewardModel | None, sampling: SamplingConfig, evaluation: EvaluationConfig, guard: GuardConfig
    ) -> None:
        super().__init__(guard)
        self.reward = reward
        self.sampling = sampling
        self.evaluation = evaluation
        self.reference = None
        self._writer: GenerationWriter | None = None
        self._compiled: CompiledDecoding | None = None

    def result_identity(self) -> dict[str, Any]:
        """What a result file says of the policy, the reward, the reference and the data (docs/results.md)."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        return [_DiscardUnfinished()]

    def discard_unfinished(self) -> None:
        """Remove the file that this process is writing, if there is one."""
        if self._writer is not None:
            self._writer.discard()

    # sampling and scoring

    def generate(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw one response a prompt from the current policy."""
        decoder = self.decoder_of(self.actor)
        samples = sample(decoder, batch, self.sampling, seed, self.tokenizer, self.actor.eos_token_ids)
        return replace(samples, frozen_states=self.actor.frozen_states(samples.sequences, samples.attention_mask))

    def decoder_of(
        self, model: LanguageModel, *, keep_hidden: bool = False, keep_prompts: bool = False
    ) -> CachedDecoder | CompiledDecoder:
        """What draws one batch from a network of this run; compiled where the policy's settings say so."""
        if self._compiled is None:
            return CachedDecoder(model, keep_hidden=keep_hidden, keep_prompts=keep_prompts)
        return self._compiled.decoder(model, self.sampling.max_new_tokens, keep_hidden=keep_hidden)

    def score(self, samples: Samples) -> Tensor:
        """f32 [B], the reward of each finished text."""
        if self.reward is None:
            raise UserError(f"{type(self).__name__} has no reward; set model.reward")
        return score(self.reward, samples)

    def in_parts(self, parts: Sequence[PromptBatch], sample: Sampler) -> ScoringAhead:
        """Sampling and scoring of a batch's parts; at the same time, where these do not take it from each other."""
        beside = self.reward is not None and self.reward.works_beside(self.device)
        return ScoringAhead(parts, sample, self.score, beside=beside)

    def judge(self, samples: Samples) -> dict[str, Tensor]:
        """f32 [B] of each held-out judge, by its name."""
        prompts, responses = samples.batch.prompts, samples.responses
        return {name: judge(prompts, responses) for name, judge in self.evaluation.judges.items()}

    def _scorers(self) -> dict[str, Judge]:
        assert self.reward is not None
        return {"reward": self.reward, **self.evaluation.judges}

    @property
    def evaluation_seed(self) -> SamplingSeed:
        """Equal in every run, so that methods are compared on equal random numbers."""
        return SamplingSeed(base=self.evaluation.seed)

    # validation: a fixed prompt set with fixed random numbers

    def on_validation_epoch_start(self) -> None:
        self._validation = ValidationSummary(self.evaluation, self.device)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate and score; the figures are logged when all prompts are in."""
        with unsharded(self.actor):
            samples = self.generate(batch, self.evaluation_seed)
            kl = self._kl(samples)
        stopped = [reason == "stop" for reason in finish_reasons(samples, self.actor.eos_token_ids)]
        self._validation.update(
            samples,
            self.score(samples),
            stopped=torch.tensor(stopped, device=self.device),
            kl=kl,
            judges=self.judge(samples),
            prompt_scores=self._prompt_scores(batch) if self._validation.needs_prompt_scores else None,
        )

    def on_validation_epoch_end(self) -> None:
        figures = self._validation.compute()
        # the metrics are over all processes already; averaging equal numbers changes nothing
        self.log_dict({f"val/{name}": value for name, value in figures.items()}, prog_bar=False, sync_dist=True)

    # test and predict: the same files for every method

    def on_test_epoch_start(self) -> None:
        self._writer = self._new_writer(GENERATIONS)
        for scorer in self._scorers().values():
            scorer.texts_cut = 0

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate, score, and write one line a response."""
        self._write_generations(batch)

    def on_test_epoch_end(self) -> None:
        """Compute every number from the finished generations, print the table and write the results file."""
        with unsharded(self.actor), unsharded(self._separate_reference):
            texts = self._human_texts()
            perplexity = self._human_perplexity(texts)
            cut = {name: sum(gather_items([scorer.texts_cut])) for name, scorer in self._scorers().items()}
            if self._writer is None:
                return
            identity = self.result_identity() | {"human_texts": texts_identity(texts), "texts_cut": cut}
        finished = self._writer.finish()
        report(finished, identity, self.evaluation, perplexity | self._response_perplexity(finished))

    def on_predict_epoch_start(self) -> None:
        self._writer = self._new_writer(PREDICTIONS)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate and score for prompts of the user's own; one line a response."""
        self._write_generations(batch)

    def on_predict_epoch_end(self) -> None:
        if self._writer is not None:
            rank_zero_info(f"wrote {self._writer.close()}")

    @property
    def _run_folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def _new_writer(self, name: str) -> GenerationWriter | None:
        """Process 0 writes for all."""
        if not self.trainer.is_global_zero:
            return None
        return GenerationWriter(self._run_folder / name)

    def _write_generations(self, batch: PromptBatch) -> None:
        with unsharded(self.actor):
            draws = [self._complete(batch, draw) for draw in range(self.evaluation.completions)]
        own = rows_by_prompt(draws, self._prompt_scores(batch), self.actor.eos_token_ids)
        prompts = gather_items(own)
        if self._writer is not None:
            self._writer.write(prompts)

    def _complete(self, batch: PromptBatch, draw: int) -> Completions:
        samples = self.generate(batch, replace(self.evaluation_seed, draw=draw))
        kl = self._kl(samples)
        samples = replace(samples, frozen_states=None)  # large, and of no further use
        return Completions(samples=samples, scores=self.score(samples), kl=kl, judges=self.judge(samples))

    def perplexities(self, texts: Sequence[str]) -> Tensor:
        """f32 [n], the perplexity of each text under the policy itself, whatever its responses are drawn with."""
        return text_perplexities(self.actor, self.tokenizer, texts)

    def _human_texts(self) -> Sequence[str]:
        """Those of the data whose perplexity is reported (docs/method.md, section 4); empty where it has none."""
        human_texts = getattr(getattr(self.trainer, "datamodule", None), "human_texts", None)
        if human_texts is None or self.evaluation.perplexity_texts == 0:
            return []
        texts: Sequence[str] = human_texts()[: self.evaluation.perplexity_texts]
        return texts

    def _human_perplexity(self, texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        if not texts:
            return {}
        own = self.perplexities(texts[rank() :: world_size()])
        return {"perplexity": torch.tensor(gather_items(own.tolist()), dtype=torch.float64).numpy()}

    def _response_perplexity(self, finished: Path) -> dict[str, NDArray[np.float64]]:
        """Of the responses just written, [n, k], under the judge that the configuration names."""
        name = self.evaluation.perplexity_judge
        if name is None:
            return {}
        judge = ResponsePerplexity(name, self.device)
        return {"perplexity_generations": judge(read_rows(finished)).reshape(-1, self.evaluation.completions)}

    def _kl(self, samples: Samples) -> Tensor:
        """f32 [B], Σ_t log π − log π_ref, in nats: of the distribution drawn from, against the reference as it is.

        The reference is not filtered or tempered along, nor kept from ending: what a filter takes from the policy would
        go unseen otherwise, and methods that filter could not be compared with methods that do not.
        """
        assert self.reference is not None
        plain = replace(self.sampling, min_new_tokens=0, temperature=1.0, top_k=0, top_p=1.0)
        logratio = self.response_logprobs(samples) - self.reference.response_logprobs(samples, plain)
        return torch.where(samples.response_mask, logratio, 0.0).sum(dim=1)

    def response_logprobs(self, samples: Samples) -> Tensor:
        """f32 [B, T], log-probability of each response token under the distribution that `generate` drew it from."""
        return self.actor.response_logprobs(samples, self.sampling)

    def _prompt_scores(self, batch: PromptBatch) -> Tensor:
        """f32 [B], the reward of the prompts alone: the x-axis of every tail analysis (docs/method.md, section 3)."""
        assert self.reward is not None
        return self.reward(batch.prompts, [""] * len(batch))

    @property
    def _separate_reference(self) -> torch.nn.Module:
        """The reference's own network; an empty one where it is the policy's."""
        return self.reference.model if isinstance(self.reference, FrozenModel) else torch.nn.Identity()
