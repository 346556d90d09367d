"""``EGTSweep`` as types: a file on a researcher's machine that says many runs at once. The cluster never sees it.

A run of a sweep is the base with ``common``, the fields of its arm and its seed laid over it. A path such as
``curate.keep.share`` names a field of spec; what stands there is replaced as a whole.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from egt_operator.api_parts import NAME_LENGTH, Metadata
from egt_pipeline.contract.base import Recipe, Seed

FieldPath = Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9]*(\.[a-z][A-Za-z0-9]*)*$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Overrides = dict[FieldPath, Any]


class Seeds(Recipe):
    """Each arm runs once for every value."""

    fields: tuple[FieldPath, ...] = Field(min_length=1)
    """The seeds of the recipes that take the value, as in [rl.seed]; all others stay as they are."""
    values: tuple[Seed, ...] = Field(min_length=1)
    """One run of each arm a value."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        for name in ("fields", "values"):
            found = getattr(self, name)
            if len(set(found)) < len(found):
                raise ValueError(f"{name}: something is given twice in {list(found)}")
        return self


class SweepTable(Recipe):
    """Arms side by side: a table, and a plot of it."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # YAML reads the points of a curve as numbers

    name: str = Field(min_length=1)
    """Name of the table; figures of ``reference`` with this name are shown beside it."""
    title: str = ""
    """What is compared."""
    rows: dict[str, str] = Field(min_length=1)
    """The name of each row and its arm; an arm may stand in several tables."""
    x: str | None = None
    """What the rows are points of: then their names are numbers, and the plot is a curve over them."""

    @model_validator(mode="after")
    def _points_are_numbers(self) -> Self:
        for row in self.rows if self.x is not None else ():
            try:
                float(row)
            except ValueError:
                raise ValueError(f"rows: {row!r} is no number, which a table with x needs") from None
        return self


class EGTSweep(Recipe):
    """Many runs that differ in named fields, and the tables that compare them."""

    api_version: Literal["egt.dev/v1alpha1"]
    """Version of this API."""
    kind: Literal["EGTSweep"]
    """Kind of the file."""
    metadata: Metadata
    """Its name begins the names of all runs: NAME-ARM-SEED, at most 40 characters."""
    base: str = Field(min_length=1)
    """The EGTRun that all runs start from: a path, relative to this file."""
    common: Overrides = Field(default={})
    """Fields of spec that differ from base in every run."""
    seeds: Seeds
    """Which seeds vary, and over which values."""
    arms: dict[ArmName, Overrides] = Field(min_length=1)
    """Name of each arm, and the fields of spec in which it differs."""
    tables: tuple[SweepTable, ...] = ()
    """What is compared with what."""
    columns: dict[str, Annotated[str, Field(pattern=r"^accuracy(\.|$)")]] = Field(
        default={"overall": "accuracy"}, min_length=1
    )
    """Name of each column, and the metric of evaluate in it, of the last model of a run: accuracy.subset.clear."""
    reference: str | None = Field(default=None, min_length=1)
    """A .csv file of figures from elsewhere, shown beside: table,row,COLUMN.., in percent; relative to this file."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problem = next(chain(self._names(), self._seeds(), self._tables()), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def run_name(self, arm: str, seed: int) -> str:
        """The name of one run."""
        return f"{self.metadata.name}-{arm}-{seed}"

    def _names(self) -> Iterator[str]:
        for arm in self.arms:
            name = max((self.run_name(arm, seed) for seed in self.seeds.values), key=len)
            if len(name) > NAME_LENGTH:
                yield f"arms.{arm}: its run {name!r} has {len(name)} characters; {NAME_LENGTH} are accepted"

    def _seeds(self) -> Iterator[str]:
        for where, overrides in (("common", self.common), *((f"arms.{arm}", o) for arm, o in self.arms.items())):
            for field in self.seeds.fields:
                if field in overrides:
                    yield f"{where}.{field}: stands in seeds.fields too, which gives it its value"

    def _tables(self) -> Iterator[str]:
        names = [table.name for table in self.tables]
        for number, table in enumerate(self.tables):
            if table.name in names[:number]:
                yield f"tables[{number}].name: {table.name!r} is the name of an earlier table"
            for row, arm in table.rows.items():
                if arm not in self.arms:
                    yield f"tables[{number}].rows.{row}: {arm!r} is no arm; known are {', '.join(self.arms)}"
