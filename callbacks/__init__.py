"""Callbacks for `lightning_rarlhf`'s modules; they observe, except for `RiskSchedule`, which sets the risk level."""

from callbacks.drift_alarm import DriftAlarm
from callbacks.hugging_face_export import HuggingFaceExport
from callbacks.prompt_perplexity import PromptPerplexity
from callbacks.risk_schedule import RiskSchedule
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.stop_on_signal import StopOnSignal

__all__ = ["DriftAlarm", "HuggingFaceExport", "PromptPerplexity", "RiskSchedule", "RunCheckpoint", "StopOnSignal"]
