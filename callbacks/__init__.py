"""Callbacks for `lightning_rarlhf`'s modules; they observe, except for `RiskSchedule`, which sets the risk level."""

from callbacks.hugging_face_export import HuggingFaceExport
from callbacks.risk_schedule import RiskSchedule
from callbacks.run_checkpoint import RunCheckpoint

__all__ = ["HuggingFaceExport", "RiskSchedule", "RunCheckpoint"]
