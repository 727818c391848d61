"""`test`, `predict` and `validate` of a policy under any decoding-time method; the files are those of any method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.config import EvaluationConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.method import DecodingMethod, Host
from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.records.results_file import weights_sha256
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.sampling import SamplingSeed

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class DecodingModule(LanguageModule):
    """Evaluates; it has nothing to train.

    KL is that of the distribution that the method really draws from: log-probabilities are kept while drawing.
    """

    def __init__(
        self,
        reward: RewardModel,
        method: DecodingMethod | None = None,
        policy: PolicyConfig = PolicyConfig(),
        reference: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        evaluation: EvaluationConfig = EvaluationConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            reward: scores finished texts, higher = better.
            method: how responses are drawn; none = from the policy alone.
            policy: the language model that is drawn from.
            reference: hub id[@revision] or folder of the model KL is measured against; none = the policy itself.
            sampling: applies to the method's distribution, after whatever the method does.
            evaluation: validation, test and predict.

        Raises:
            UserError: sampling is to be compiled.
        """
        if policy.compile_sampling:
            raise UserError(_NOT_COMPILED)
        super().__init__(policy, reference, reward, sampling, evaluation, _no_optimizer)
        self.method = method if method is not None else Plain()

    def setup(self, stage: str) -> None:
        """Refuse to fit, and networks of the method that are not there."""
        if stage == "fit":
            raise UserError(_NOTHING_TO_FIT)
        self.method.require_networks()
        super().setup(stage)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> NoReturn:
        """Never reached; without it Lightning would refuse `fit` in words of its own."""
        raise UserError(_NOTHING_TO_FIT)

    def build(self) -> None:
        """Load the policy, the reference and the method's own networks."""
        super().build()
        self.method.load(
            Host(
                policy=self.actor,
                tokenizer=self.tokenizer,
                config=self.policy_config,
                sampling=self.sampling,
                device=self.trainer.strategy.root_device,
                score=self.score,
            )
        )

    def _require_room_for(self, longest: int) -> None:
        """See that what the method reads before a prompt fits too, in each of its networks."""
        super()._require_room_for(longest)
        prefix, prompt, response = self.method.prefix_tokens, longest, self.sampling.max_new_tokens
        for network in self.method.networks:
            limit = network.context_length
            if limit is not None and prefix + prompt + response > limit:
                raise ModelError(
                    f"{type(self.method).__name__}: {prefix} tokens before the prompt + {prompt} prompt tokens + "
                    f"max_new_tokens={response} do not fit into a context of {limit} tokens; shorten the instruction, "
                    "data.prompt_tokens or sampling.max_new_tokens"
                )

    def generate(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw one response a prompt, as the method does."""
        return self.method.draw(batch, seed)

    def response_logprobs(self, samples: Samples) -> Tensor:
        """f32 [B, T], kept while drawing: no forward pass of one network gives them again."""
        assert samples.logprobs is not None
        return samples.logprobs

    def _kl(self, samples: Samples) -> Tensor:
        return super()._kl(samples) + self.method.kl_excess

    def result_identity(self) -> dict[str, Any]:
        """As of every method, and what the method is, costs and loaded."""
        others = [network for network in self.method.networks if network is not self.actor]
        loaded = {"networks_sha256": [weights_sha256(network.lm) for network in others]}
        return {**super().result_identity(), "method": {**self.method.identity(), **loaded}}


_NOT_COMPILED = (
    "DecodingModule: model.policy.compile_sampling does not reach into a decoding method and would be ignored; set it "
    "to false, or test the policy alone by --model RiskAversePPOModule, which compiles"
)
_NOTHING_TO_FIT = (
    "DecodingModule changes how responses are drawn and has nothing to fit; use test, validate or predict, or fit "
    "RiskAversePPOModule, SFTModule or another trained method"
)


def _no_optimizer(_parameters: Iterable[torch.nn.Parameter]) -> NoReturn:
    raise UserError(_NOTHING_TO_FIT)
