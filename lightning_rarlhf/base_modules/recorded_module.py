"""What is written down of a run: in its results, what was tested; in its checkpoints, what a resumed run must know."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.base_modules.evaluated_module import EvaluatedModule
from lightning_rarlhf.checkpoints.trained_weights import only_trained, require_trained
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.provenance import read_training, training_of_checkpoint, training_record
from lightning_rarlhf.records.results_file import weights_sha256
from lightning_rarlhf.reference import FrozenModel, is_start
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.terminal.plain_text import visible


class RecordedModule(EvaluatedModule):
    """Knows which policy it was asked for, which it has, and what trained it.

    Attributes:
        policy_config: what the policy is loaded from.
        reference_name: hub id[@revision] or folder that KL is measured against; None = the policy as it starts.
        seed: of all sampling; None until `setup`.
        method_settings: the part of the configuration of `fit` that makes the method; set by the command line.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        reference: str | None,
        reward: RewardModel | None,
        sampling: SamplingConfig,
        evaluation: EvaluationConfig,
        guard: GuardConfig,
    ) -> None:
        super().__init__(reward, sampling, evaluation, guard)
        self.policy_config = policy
        self.reference_name = reference
        self.seed: int | None = None
        self.method_settings: dict[str, Any] | None = None
        self.strict_loading = not policy.trains_part  # else `on_load_checkpoint` looks for what was trained
        self._loaded_training: dict[str, Any] | None = None

    @property
    def trains_critic(self) -> bool:
        """Whether the value head is trained, and so worth keeping."""
        return False

    # results

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

    def tell_own_reference(self) -> None:
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
        self._loaded_training = training_of_checkpoint(checkpoint, self.trainer.ckpt_path)
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
