"""What every block of a YAML file here is made of, and how a mistake in one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.credentials import refuse_credentials

Positive = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


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


def read_yaml(path: Path) -> Any:
    """What a YAML file says. Raises ValueError for a URL with credentials, and for a key that comes twice in a block,
    since the first would be lost.
    """
    with path.open() as file:
        values = yaml.load(file, _Loader)  # noqa: S506  it is a CSafeLoader
    refuse_credentials(values)
    return values


class _Loader(yaml.CSafeLoader):
    """Refuses what YAML itself forbids and PyYAML lets pass."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()  # nodes: once it is flattened, one holds what it merges as well

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self.checked:
            self.checked.add(id(node))
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            twice = {key for key in keys if keys.count(key) > 1}
            if twice:
                raise ValueError(f"line {node.start_mark.line + 1}: key {min(twice)!r} comes twice in one block")
        super().flatten_mapping(node)
