"""The command line: ``python train.py fit|validate|test|predict --config configs/<task>.yaml``."""

from __future__ import annotations

import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType

from callbacks import DriftAlarm, HuggingFaceExport, PromptPerplexity, RiskSchedule
from datamodules import (
    IMDBDataModule,
    JigsawDataModule,
    LabelledTextDataModule,
    PreferenceDataModule,
    RealToxicityPromptsDataModule,
    RunDataModule,
    SyntheticDataModule,
    TextFileDataModule,
)
from lightning_rarlhf.base_modules.guarded_module import GuardedModule
from lightning_rarlhf.command_line.cli import TrainCLI
from lightning_rarlhf.decoding.best_of_k import BestOfK
from lightning_rarlhf.decoding.dexperts import DExperts
from lightning_rarlhf.decoding.gedi import GeDi
from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.decoding.prompted import Prompted
from lightning_rarlhf.decoding.rect import Rect
from lightning_rarlhf.decoding.self_debias import SelfDebias
from lightning_rarlhf.decoding_module import DecodingModule
from lightning_rarlhf.distributed import leave, lost_process
from lightning_rarlhf.errors import mistake_behind
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.quark_module import QuarkModule
from lightning_rarlhf.rect_module import RectModule
from lightning_rarlhf.reward_models import CallableReward, ClassifierReward
from lightning_rarlhf.reward_module import RewardModule
from lightning_rarlhf.sft_module import SFTModule
from lightning_rarlhf.terminal.plain_text import error_line
from lightning_rarlhf.trainer.strategies import FSDP2Strategy

# What a YAML file may name without its module's path.
__all__ = [
    "BestOfK",
    "CallableReward",
    "ClassifierReward",
    "DExperts",
    "DecodingModule",
    "DriftAlarm",
    "FSDP2Strategy",
    "GeDi",
    "HuggingFaceExport",
    "IMDBDataModule",
    "JigsawDataModule",
    "LabelledTextDataModule",
    "Plain",
    "PreferenceDataModule",
    "PromptPerplexity",
    "Prompted",
    "QuarkModule",
    "RealToxicityPromptsDataModule",
    "Rect",
    "RectModule",
    "RewardModule",
    "RiskAversePPOModule",
    "RiskSchedule",
    "SFTModule",
    "SelfDebias",
    "SyntheticDataModule",
    "TextFileDataModule",
]


def main(args: ArgsType = None) -> None:
    """Parse `args` (none = the command line) and run. A mistake of the user's is one line and exit status 2."""
    try:
        TrainCLI(GuardedModule, RunDataModule, args=args)
    except KeyboardInterrupt:  # before a fit has begun; later see `StopOnSignal`
        raise SystemExit(130) from None
    except (ValueError, MisconfigurationException) as error:
        mistake = error if isinstance(error, MisconfigurationException) else mistake_behind(error)
        if mistake is None:
            raise
        sys.stderr.write(error_line(mistake))
        raise SystemExit(2) from None
    except RuntimeError as error:
        lost = lost_process(error)
        if lost is None:
            raise
        leave(f"error: {lost}\n")


if __name__ == "__main__":
    main()
