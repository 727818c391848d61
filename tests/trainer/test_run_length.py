"""A fit of no step is refused in Python too, before the model is loaded; the command line's is in test_bad_input."""

from __future__ import annotations

import pytest

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.reward_module import RewardModule
from lightning_rarlhf.sft_module import SFTModule
from tests.quiet_trainer import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@pytest.mark.parametrize("setting", ["max_steps", "max_epochs", "limit_train_batches"])
@pytest.mark.parametrize("module", [SFTModule(PolicyConfig(pretrained="not/loaded")), RewardModule()])
def test_a_fit_of_no_step_is_refused(tmp_path, module, setting):
    with pytest.raises(UserError, match=f"trainer.{setting}=0: fit would train nothing; give a number above 0"):
        quiet_trainer(tmp_path, **{"max_epochs": 1, setting: 0}).fit(module, [])
