"""Prompts for training and evaluation; a configuration names these classes bare."""

from datamodules.base import PromptDataModule
from datamodules.imdb import IMDBDataModule
from datamodules.jigsaw import JigsawDataModule
from datamodules.real_toxicity_prompts import RealToxicityPromptsDataModule
from datamodules.synthetic import SyntheticDataModule
from datamodules.text_file import TextFileDataModule

__all__ = [
    "IMDBDataModule",
    "JigsawDataModule",
    "PromptDataModule",
    "RealToxicityPromptsDataModule",
    "SyntheticDataModule",
    "TextFileDataModule",
]
