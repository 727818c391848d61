"""An alarm for reward hacking: the score that is trained on rises while a judge that it cannot see falls."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from callbacks.known_judges import require_judge
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.trend import kendall_trend

_LEAST_WINDOW = 3
"""two validations rise or fall by chance every second time"""


class DriftAlarm(Callback):
    """Warns when the training reward rises and a held-out judge falls over the last few validations.

    Rising and falling are Kendall's trend of the window: pairs of validations in rising order less those in falling
    order, as a share of all pairs. It depends on no unit, and one outlier moves it little. Logs
    ``drift/<judge>``, 1 while the alarm lasts and 0 otherwise, once the window is full.
    """

    def __init__(
        self,
        judge: str,
        score: str = "val/score_mean",
        judge_mode: Literal["min", "max"] = "max",
        window: PositiveInt = 5,
        min_trend: ClosedUnitInterval = 0.8,
        stop: bool = False,
    ) -> None:
        """Choose what is watched.

        Args:
            judge: metric of a judge that the policy is not trained on (val/judge/<name>/score_mean, ...).
            score: metric of the reward that it is trained on.
            judge_mode: whether a larger or a smaller metric of the judge is better.
            window: validations that are looked at, at least 3.
            min_trend: strength of both trends, above 0, that counts; 1 = every validation beats all before it. At 0.8
                and a window of 5, noise alone rings once in 576 windows (1/24 for either trend).
            stop: end the fit when the alarm begins.
        """
        super().__init__()
        if window < _LEAST_WINDOW:
            raise UserError(f"DriftAlarm: window={window}, expected at least {_LEAST_WINDOW} validations")
        if min_trend <= 0:
            raise UserError(f"DriftAlarm: min_trend={min_trend}, expected more than 0 and at most 1")
        if judge == score:
            raise UserError(f"DriftAlarm: judge and score are both {judge}; name a judge that is not trained on")
        self.judge = judge
        self.score = score
        self.judge_mode = judge_mode
        self.window = int(window)
        self.min_trend = float(min_trend)
        self.stop = stop
        self.history: list[tuple[int, float, float]] = []
        """(iteration, score, judge) of the last validations, the window at most"""
        self.ringing = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(score=self.score, judge=self.judge)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a judge that is not there, before anything is trained; other metrics show at the first validation."""
        if stage == "fit":
            for metric in (self.score, self.judge):
                require_judge(pl_module, metric, "DriftAlarm")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the window that ends with this validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        iteration = trainer.global_step
        seen = (iteration, self._logged(trainer, self.score), self._logged(trainer, self.judge))
        # A run that resumes right at a validation repeats it.
        self.history = [*(entry for entry in self.history if entry[0] < iteration), seen][-self.window :]
        if len(self.history) < self.window:
            return
        was_ringing, self.ringing = self.ringing, self._drifts()
        for logger in trainer.loggers:
            logger.log_metrics({f"drift/{self.judge.removeprefix('val/')}": float(self.ringing)}, step=iteration)
        if self.ringing and not was_ringing:
            rank_zero_warn(self._describe())
            trainer.should_stop = trainer.should_stop or self.stop
        elif was_ringing and not self.ringing:
            rank_zero_info(f"iteration {iteration}: {self.score} and {self.judge} no longer drift apart")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "ringing": self.ringing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [tuple(entry) for entry in state_dict["history"]]
        self.ringing = state_dict["ringing"]

    def _drifts(self) -> bool:
        _, scores, judges = zip(*self.history, strict=True)
        better = 1 if self.judge_mode == "max" else -1
        return kendall_trend(scores) >= self.min_trend and -better * kendall_trend(judges) >= self.min_trend

    def _describe(self) -> str:
        (first, score_before, judge_before), (last, score, judge) = self.history[0], self.history[-1]
        return (
            f"drift: from iteration {first} to {last}, {self.score} rose from {score_before:.4g} to {score:.4g} while "
            f"{self.judge} got worse, from {judge_before:.4g} to {judge:.4g}; the policy may be learning the reward "
            "model's weaknesses: read some of its responses, lower kl.target, or train for fewer iterations"
        )

    def _logged(self, trainer: pl.Trainer, name: str) -> float:
        if name not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"DriftAlarm: {name!r} is not logged; expected one of {logged}")
        return float(trainer.callback_metrics[name])
