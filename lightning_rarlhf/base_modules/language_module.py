"""What every method shares: how policy and reference come about, and what must hold first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_rarlhf.base_modules.policy_rules import require_trainable, require_workable
from lightning_rarlhf.base_modules.recorded_module import RecordedModule
from lightning_rarlhf.cached_decoding.compilable import require_compilable, require_compiler
from lightning_rarlhf.cached_decoding.compiled_decoding import CompiledDecoding
from lightning_rarlhf.checkpoints.resume import settings_of
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.distributed import rank
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.loading.hub import require_model, split_revision
from lightning_rarlhf.loading.own_code import trust
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.reference import FrozenModel, Reference, load_reference, require_same_words
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.sampling import require_room
from lightning_rarlhf.stepping.optimizing import go_on
from lightning_rarlhf.trainer.freed_memory import keep_freed_memory
from lightning_rarlhf.trainer.precision import require_precision
from lightning_rarlhf.trainer.sharding import whole_state
from lightning_rarlhf.trainer.strategies import (
    FSDP2Strategy,
    divide,
    require_same_seed,
    require_supported,
    usable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer


class LanguageModule(RecordedModule):
    """Base of the methods: makes the actor and its reference in `configure_model`, and an optimizer over the actor."""

    def __init__(
        self,
        policy: PolicyConfig,
        reference: str | None,
        reward: RewardModel | None,
        sampling: SamplingConfig,
        evaluation: EvaluationConfig,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        super().__init__(policy, reference, reward, sampling, evaluation, guard)
        trust(policy.trust_remote_code, policy.pretrained, policy.revision, "policy.trust_remote_code")
        self._compiled = CompiledDecoding() if policy.compile_sampling else None
        self.make_optimizer = optimizer
        self._built = False

    # construction

    def setup(self, stage: str) -> None:
        """Load what is frozen, on this process's device; choose the seed of all sampling."""
        super().setup(stage)
        require_precision(str(self.trainer.precision))
        require_supported(self.trainer)
        self.require_workable(self.trainer)
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        require_same_seed(self.seed)
        if stage in ("fit", "validate") and not self.trains_with_reward:
            return
        device = self.trainer.strategy.root_device
        if device.type == "cpu":
            keep_freed_memory()
        if self.reward is None:
            raise UserError(f"{type(self).__name__}: {stage} needs a reward; set model.reward")
        self.reward.load(device)
        for judge in self.evaluation.judges.values():
            judge.load(device)
        if stage == "test" and self.evaluation.perplexity_judge is not None:
            # it is loaded at the very end, too late to find it missing
            require_model(*split_revision(self.evaluation.perplexity_judge))

    def require_workable(self, trainer: pl.Trainer) -> None:
        """Refuse settings of the policy that this trainer cannot work with; cheap, so that it can be asked early.

        Raises:
            UserError: the reason, and what to set instead.
        """
        fits = trainer.state.fn == "fit"
        if fits:
            self.require_fit()
        require_workable(
            self.policy_config,
            fits=fits,
            shards=isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy),
            device=trainer.strategy.root_device.type,
        )
        if self.policy_config.compile_sampling:
            require_compiler(trainer.strategy.root_device)
        if fits and isinstance(trainer.strategy, FSDP2Strategy):
            usable(self.make_optimizer([torch.nn.Parameter(torch.zeros(1, 1))]), trainer)

    @property
    def trains_with_reward(self) -> bool:
        """Whether `fit` and `validate` score responses."""
        return True

    @property
    def trains_on(self) -> type[PromptBatch] | type[TextBatch]:
        """The batches that `fit` takes."""
        return PromptBatch

    def configure_model(self) -> None:
        """Load what the method works with; once, though Lightning asks before every stage."""
        if not self._built:
            self.build()
            self._built = True

    def build(self) -> None:
        """Load the policy, and the reference that KL is measured against; a method may add to it."""
        self.tokenizer = load_tokenizer(self.policy_config.pretrained, self.policy_config.revision)
        has_reference = self.trains_with_reward or self.trainer.state.fn in ("test", "predict")
        if has_reference:
            require_same_words(self.policy_config, self.reference_name, self.tokenizer)
        self.actor = self._load_actor()
        if self.trainer.state.fn == "fit":
            require_trainable(self.policy_config, quantized=bool(getattr(self.actor.lm, "is_quantized", False)))
        if self.policy_config.compile_sampling:
            require_compilable(self.actor)
        if has_reference:
            self.reference = self._load_reference()
        if not self.trains_critic:
            self.actor.value_head.requires_grad_(False)  # DDP waits for the gradient of whatever requires one
        divide(self.actor, self.trainer)

    def _load_actor(self) -> ActorCritic:
        return load_actor_critic(self.policy_config, self.tokenizer, self.trainer.strategy.root_device)

    def _load_reference(self) -> Reference:
        device = self.trainer.strategy.root_device
        reference = load_reference(self.policy_config, self.reference_name, self.actor, device)
        if isinstance(reference, FrozenModel):
            divide(reference.model, self.trainer)
            reference.to(device)
        return reference

    def whole_actor(self) -> ActorCritic | None:
        """The actor with all of its weights, on process 0 where it is sharded; a copy then, on the CPU."""
        state = whole_state(self.actor)
        if state is None:
            return self.actor
        if rank() > 0:
            return None
        copy = load_actor_critic(self.policy_config, self.tokenizer, torch.device("cpu"))
        copy.load_state_dict(state)
        return copy

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer that the configuration names, over what is trained."""
        trained = [p for p in self.trained_network.parameters() if p.requires_grad]
        optimizer = usable(self.make_optimizer(trained), self.trainer)
        self._optimizer_settings = settings_of(optimizer)
        return optimizer

    @property
    def trained_network(self) -> torch.nn.Module:
        """What the optimizer moves."""
        return self.actor

    # preconditions, checked once before the first batch

    def on_train_start(self) -> None:
        """Refuse data that does not fit; go on, in a resumed run, by the user's optimizer settings."""
        self._require_room(self.trainer.train_dataloader)
        go_on(self.trainer, self._optimizer_settings)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Refuse batches of another purpose."""
        super().on_train_batch_start(batch, batch_idx)
        if not isinstance(batch, self.trains_on):
            purpose = "prompts" if self.trains_on is PromptBatch else "sft"
            raise UserError(
                f"{type(self).__name__} trains on {self.trains_on.__name__}, got {type(batch).__name__}; "
                f"set data.purpose: {purpose}"
            )
        self._require_room_of(batch)

    def on_validation_batch_start(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse what does not fit the model's context."""
        self._require_room_of(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_validation_start(self) -> None:
        self._require_room(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        self.tell_own_reference()
        self._require_room(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        self._require_room(self.trainer.predict_dataloaders)

    def _require_room(self, loader: Any) -> None:
        """See that the longest prompt (the longest text of SFT) fits the model's context, before hours are spent."""
        lengths = getattr(loader, "lengths", None)
        if lengths is not None and len(lengths):
            self._require_room_for(int(lengths.max()))

    def _require_room_of(self, batch: object) -> None:
        """See the same of a batch: an own loader may not have told lengths."""
        if not isinstance(batch, PromptBatch | TextBatch):
            return
        mask = batch.attention_mask
        try:
            self._require_room_for(mask.shape[1])
        except ModelError:  # unless much of it is padding, to know which waits for the device
            self._require_room_for(int(mask.sum(dim=1).max()))

    def _require_room_for(self, longest: int) -> None:
        sampled = self.trains_on is PromptBatch or self.trainer.testing or self.trainer.predicting
        tokens = self.sampling.max_new_tokens if sampled else 0
        require_room(self.actor, longest, tokens)
        if isinstance(self.reference, FrozenModel):
            require_room(self.reference.model, longest, tokens, name="reference")

    def teardown(self, stage: str) -> None:
        """Give back what compiled sampling holds."""
        super().teardown(stage)
        if self._compiled is not None:
            self._compiled.clear()
