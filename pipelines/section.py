"""What every block of a YAML file here is made of, and how a mistake in one is told."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Section(BaseModel):
    """A block of values: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Parsed = TypeVar("Parsed", bound=Section)


def parsed(section: type[Parsed], values: Any, where: str) -> Parsed:
    """`values` as a section. Raises ValueError in one line: where it is, what was given, what is allowed."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {first['input']!r:.80})"
    parts = (where, key, first["msg"].removeprefix("Value error, ") + given)
    raise ValueError(": ".join(part for part in parts if part))
