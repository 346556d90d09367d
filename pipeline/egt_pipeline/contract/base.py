"""What every recipe is made of: frozen fields, and an identity that leaves placement out."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Placement:
    """Marks a field that changes where or how fast a stage runs, never what it computes."""


class Recipe(BaseModel):
    """Base of everything a user writes: frozen, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with changes; what was worked out of the original stays behind."""
        copy = super().model_copy(update=update, deep=deep)
        for name in set(copy.__dict__) - set(type(self).model_fields):
            del copy.__dict__[name]
        return copy

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The recipe as JSON data without its placement fields: what a digest is made of."""
        fields = type(self).model_fields
        names = [n for n, f in fields.items() if not any(m is Placement for m in f.metadata)]
        values = ((n, getattr(self, n)) for n in names)
        return {n: _identity(v) for n, v in values}


def _identity(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.identity
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    return value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(gt=0, le=1)]
PromptId = Literal["egt-v1", "plain-v1"]


class Endpoint(Recipe):
    """An OpenAI-compatible service."""

    model: str = Field(min_length=1)
    """Name of the model as the service knows it."""
    base_url: Annotated[str, Placement, Field(pattern=r"^https?://[^@?#\s]+$")] = "https://api.openai.com/v1"
    """Address of the service, up to and without /chat/completions."""
    api_key_env: Annotated[str, Placement, Field(pattern=r"^[A-Z][A-Z0-9_]*(KEY|TOKEN)$")] = "OPENAI_API_KEY"
    """Environment variable that holds the key, never the key itself; its name ends in KEY or TOKEN."""
    api_key_secret: Annotated[str | None, Placement, Field(max_length=253)] = None
    """In a cluster: the Secret of the run's namespace that holds it, under the variable's name."""
    timeout_seconds: Annotated[float, Placement, Field(gt=0)] = 60.0
    """How long one request may take."""
    concurrency: Annotated[int, Placement, Field(ge=1, le=1024)] = 16
    """How many requests are under way at once."""
