"""Risk-averse fine-tuning of language models with PyTorch Lightning: train away the worst outputs, not the average."""

__version__ = "0.1.0"
