"""What a validation found wrong with an object, for people: the field, the value seen, and what would be accepted."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

_SECRETS = ("apiKeyEnv", "baseUrl")  # where people put keys and passwords, which no message is to repeat
_SHOWN = 80  # characters of a value that a message repeats


def in_words(details: ErrorDetails) -> str:
    """One error in one line."""
    path, value = _path(details["loc"]), _shown(details["input"])
    if path.rpartition(".")[2] in _SECRETS:
        value = "what was given, perhaps a key itself,"
    context = details.get("ctx", {})
    match details["type"]:
        case "missing":
            said = "is missing"
        case "extra_forbidden":
            said = "is no field here"
        case "literal_error" | "enum":
            said = f"{value} is not accepted; it must be {context['expected']}"
        case "json_invalid":
            said = f"{value} is not JSON: {context['error']}"
        case "value_error":
            return _own_words(path, str(context["error"]))
        case _:
            wanted = details["msg"].partition(" should ")[2] or details["msg"]
            said = f"{value} is not accepted; it should {wanted}"
    return f"{path}: {said}" if path else said


def _own_words(path: str, message: str) -> str:
    """Our validators start with the field they mean, seen from the object they stand in, or from spec."""
    field, colon, _ = message.partition(": ")
    if not path or field.startswith("spec."):
        return message
    if not colon or " " in field:
        return f"{path}: {message}"
    return f"{path.removesuffix('.' + field.split('.')[0])}.{message}"


def _path(location: Sequence[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."
