"""The settings of a class are found whatever its arguments are, as users' own may be anything."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lightning_rarlhf.command_line.class_keys import keys_of_class

if TYPE_CHECKING:
    from decimal import Decimal


@dataclasses.dataclass
class Tree:
    """Holds its own kind."""

    name: str
    child: Tree | None = None


@dataclasses.dataclass
class Late:
    """One of its types is there for type checkers only."""

    price: Decimal
    name: str


class Takes:
    """Both."""

    def __init__(self, tree: Tree | None, late: Late | None) -> None:
        self.tree, self.late = tree, late


def test_a_group_within_itself_ends() -> None:
    assert {"tree", "tree.name", "tree.child"} <= set(keys_of_class(Takes))


def test_a_type_that_is_not_there_is_no_group() -> None:
    assert {"late", "late.price", "late.name"} <= set(keys_of_class(Takes))


def test_a_function_that_makes_modules_has_no_keys() -> None:
    assert list(keys_of_class(dataclasses.replace)) == []
