"""The formulas of what a GPU holds, below the table of it: each once, with the phases it is of, then the symbols."""

from collections.abc import Mapping
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from egt_operator.formulas import SHAPE, WORK, Terms

_Value = TypeVar("_Value", str, float)
_WORDS = {"kv_cache": "KV cache", "overhead": "other"}
KINDS = ("weights", "gradients", "optimiser", "activations", "kv_cache", "overhead")


def print_formulas(console: Console, terms: Mapping[str, Terms]) -> None:
    """``terms`` are by the phase's label. Formulas of kinds come first, then those that these name."""
    table = Table("bytes of", "are", "in", box=None, padding=(0, 2, 0, 0), header_style="dim")
    names = dict.fromkeys(name for one in terms.values() for name in one.formulas)
    for name in sorted(names, key=lambda name: KINDS.index(name) if name in KINDS else len(KINDS)):
        found = _same({label: one.formulas for label, one in terms.items()}, name)
        for place, (formula, labels) in enumerate(found.items()):
            where = "" if len(labels) == len(terms) else ", ".join(labels)
            table.add_row("" if place else _WORDS.get(name, name), str(formula), where)
    console.print(table, style="dim", highlight=False)
    for meanings in (SHAPE, WORK):
        said = [_said(terms, name, words) for name, words in meanings.items()]
        console.print("; ".join(filter(None, said)), style="dim", highlight=False)


def _said(terms: Mapping[str, Terms], name: str, words: str) -> str:
    """A symbol, what it means, and its values; empty where no formula names it."""
    found = _same({label: one.symbols for label, one in terms.items()}, name)
    values = [
        f"{value:,}" + (f" in {' and '.join(labels)}" if len(found) > 1 else "") for value, labels in found.items()
    ]
    return f"{name} {words}: {', '.join(values)}" if values else ""


def _same(of: Mapping[str, Mapping[str, _Value]], name: str) -> dict[_Value, list[str]]:
    """What is called ``name``, each value once, with the labels it is of."""
    found: dict[_Value, list[str]] = {}
    for label, values in of.items():
        if name in values:
            found.setdefault(values[name], []).append(label)
    return found
