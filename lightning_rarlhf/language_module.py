"""What every method shares: how policy and reference come about, what must hold first, what a checkpoint keeps."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_rarlhf.compiled_decoding import CompiledDecoding, require_compilable, require_compiler
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.distributed import rank
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.evaluated_module import EvaluatedModule
from lightning_rarlhf.freed_memory import keep_freed_memory
from lightning_rarlhf.hub import require_model, split_revision
from lightning_rarlhf.optimizing import go_on
from lightning_rarlhf.own_code import trust
from lightning_rarlhf.plain_text import visible
from lightning_rarlhf.policy import ActorCritic, FrozenModel, Reference
from lightning_rarlhf.policy_loading import load_actor_critic
from lightning_rarlhf.policy_rules import require_trainable, require_workable
from lightning_rarlhf.provenance import read_training, training_record
from lightning_rarlhf.reference import is_start, load_reference, require_same_words
from lightning_rarlhf.results_file import weights_sha256
from lightning_rarlhf.resume import settings_of
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.sampling import require_room
from lightning_rarlhf.sharding import whole_state
from lightning_rarlhf.strategies import (
    FSDP2Strategy,
    divide,
    require_precision,
    require_same_seed,
    require_supported,
    usable,
)
from lightning_rarlhf.tokenizer import load_tokenizer
from lightning_rarlhf.trained_weights import only_trained, require_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer


class LanguageModule(EvaluatedModule):
    """Base of the methods: builds the actor and its reference in `configure_model`, and the optimizer over the actor.

    Attributes:
        method_settings: the part of the configuration of `fit` that makes the method; set by the command line.
    """

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
        super().__init__(reward, sampling, evaluation, guard)
        trust(policy.trust_remote_code, policy.pretrained, policy.revision, "policy.trust_remote_code")
        self.policy_config = policy
        self._compiled = CompiledDecoding() if policy.compile_sampling else None
        self.reference_name = reference
        self.make_optimizer = optimizer
        self.seed: int | None = None
        self.strict_loading = not policy.trains_part  # else `on_load_checkpoint` looks for what was trained
        self._built = False
        self._loaded_training: dict[str, Any] | None = None
        self.method_settings: dict[str, Any] | None = None

    # construction

    def setup(self, stage: str) -> None:
        """Load what is frozen, on this process's device; choose the seed of all sampling."""
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
    def trains_critic(self) -> bool:
        """Whether the value head is trained, and so worth keeping."""
        return False

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
        reference = load_reference(self.policy_config, self.reference_name, self.actor, self.tokenizer, device)
        if isinstance(reference, FrozenModel):
            divide(reference.model, self.trainer)
            reference.to(device)
        return reference

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

    def on_validation_start(self) -> None:
        self._require_room(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        self._tell_own_reference()
        self._require_room(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        self._require_room(self.trainer.predict_dataloaders)

    def _require_room(self, loader: Any) -> None:
        """See that the longest prompt (the longest text of SFT) fits the model's context, before hours are spent."""
        lengths = getattr(loader, "lengths", None)
        if lengths is None or not len(lengths):
            return
        sampled = self.trains_on is PromptBatch or self.trainer.testing or self.trainer.predicting
        require_room(self.actor.context_length, int(lengths.max()), self.sampling.max_new_tokens if sampled else 0)

    def teardown(self, stage: str) -> None:
        """Give back what compiled sampling holds."""
        super().teardown(stage)
        if self._compiled is not None:
            self._compiled.clear()

    # what is recorded

    def result_identity(self) -> dict[str, Any]:
        """What a result file says of the policy, the reward, the reference and the data."""
        data = getattr(self.trainer, "datamodule", None)
        return {
            "module": type(self).__name__,
            "policy": self.policy_config.pretrained,
            "policy_revision": self.policy_config.revision,
            "policy_commit": getattr(self.actor.lm.config, "_commit_hash", None),
            "policy_base": self._adapters_base(),
            "policy_trust_remote_code": self.policy_config.trust_remote_code,
            "policy_sha256": weights_sha256(self.actor.lm),
            "checkpoint": self.trainer.ckpt_path,
            "seed": self.seed,
            "training": self._training_of_weights(),
            "reference": self.reference_name or self.policy_config.pretrained,
            "reference_sha256": self._reference_sha256(),
            "reward": None if self.reward is None else self.reward.identity(),
            "data": data.identity() if data is not None and hasattr(data, "identity") else None,
            "sampling": vars(self.sampling),
            "config": self.config_text,
        }

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

    def _reference_sha256(self) -> str | None:
        """Of its weights, which are whole here; None where it is the policy's own network with its adapter off."""
        if not isinstance(self.reference, FrozenModel):
            return None
        return weights_sha256(self.reference.model.lm)

    def training_record(self) -> dict[str, Any]:
        """What is to be known of the training that this module does (docs/results.md)."""
        steps = self.trainer.global_step
        return training_record(type(self).__name__, self.method_settings, seed=self.seed, steps=steps)

    def _adapters_base(self) -> str | None:
        """The model that the starting adapter stands on; None if the policy started from a model of its own."""
        loaded = str(self.actor.lm.name_or_path)
        return None if loaded in ("", self.policy_config.pretrained) else loaded

    def _training_of_weights(self) -> dict[str, Any] | None:
        """The training that the tested weights are of; None where it is not known, as of a model from elsewhere."""
        return self._loaded_training if self.trainer.ckpt_path else read_training(self.policy_config.pretrained)

    def _tell_own_reference(self) -> None:
        """Say it where KL is measured from a policy that was trained to move; SFT makes references."""
        training = None if self.trainer.ckpt_path else read_training(self.policy_config.pretrained)
        if training and training.get("module") != "SFTModule" and is_start(self.policy_config, self.reference_name):
            rank_zero_info(
                f"KL is measured from the tested policy itself, which {visible(str(training.get('module')))} trained; "
                "to measure it from where that training started, set --model.reference"
            )

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sampling seed: a resumed run continues its own random numbers, whatever the command line says.

        Frozen weights, as those below adapters, stay out; from the policy's settings they can be found again.
        """
        super().on_save_checkpoint(checkpoint)
        if self.policy_config.trains_part:
            checkpoint["state_dict"] = only_trained(self, checkpoint["state_dict"])
        # plain numbers: what the command line made of them (PositiveInt, ...) could not be read back safely
        checkpoint["policy"] = json.loads(json.dumps(asdict(self.policy_config)))
        checkpoint["trains_critic"] = self.trains_critic
        checkpoint["sampling_seed"] = self.seed
        checkpoint["module"] = type(self).__name__
        checkpoint["training"] = self.training_record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sampling seed up again.

        Raises:
            UserError: `fit` is to go on from another module's checkpoint, whose optimizer is not this one's, or its
                weights are not those of this policy.
        """
        self._loaded_training = checkpoint.get("training")
        made_by = checkpoint.get("module")
        if self.trainer.state.fn == "fit" and made_by != type(self).__name__:
            raise UserError(
                f"the checkpoint was made by {made_by}, not {type(self).__name__}; to start from its weights give "
                "the exported folder: --model.policy.pretrained RUN/huggingface"
            )
        super().on_load_checkpoint(checkpoint)
        if "state_dict" in checkpoint:
            trains_part = self.policy_config.trains_part
            require_trained(self, checkpoint["state_dict"], trains_part=trains_part, made_by=made_by)
        if checkpoint["sampling_seed"] != self.seed:
            rank_zero_info(f"the run goes on with its own seed, {checkpoint['sampling_seed']}, not {self.seed}")
        self.seed = checkpoint["sampling_seed"]
