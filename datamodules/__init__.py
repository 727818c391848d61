"""Prompts for training and evaluation; a configuration names these classes bare."""

from datamodules.base import PromptDataModule
from datamodules.imdb import IMDBDataModule
from datamodules.jigsaw import JigsawDataModule
from datamodules.labelled_text import LabelledTextDataModule
from datamodules.preferences import PreferenceDataModule
from datamodules.real_toxicity_prompts import RealToxicityPromptsDataModule
from datamodules.run_data import RunDataModule
from datamodules.synthetic import SyntheticDataModule
from datamodules.text_file import TextFileDataModule

__all__ = [
    "IMDBDataModule",
    "JigsawDataModule",
    "LabelledTextDataModule",
    "PreferenceDataModule",
    "PromptDataModule",
    "RealToxicityPromptsDataModule",
    "RunDataModule",
    "SyntheticDataModule",
    "TextFileDataModule",
]
