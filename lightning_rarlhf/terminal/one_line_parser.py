"""Command lines beside `train.py`: a mistake in an argument is one line and exit status 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning_rarlhf.terminal.plain_text import error_line


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, error_line(message))
