"""No URL in a parameter file holds credentials: what one says ends up in dvc.lock, in errors and beside downloads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

_USER = re.compile(r"://[^/?#\s]*@")  # a password, or a token alone, before the host
_QUERY = re.compile(r"://[^?#\s]*\?([^#\s]*)")
_NAME = re.compile(r"(?i)[\w.-]*(?:signature|token|secret|passw|credential|api_?key|access_?key)[\w.-]*|sig|key|pwd")


def refuse_credentials(values: Any, where: str = "") -> None:
    """Pass if no string in nested values is a URL with a password or token before its host, or one in its query, or a
    signature. Raises ValueError that names the string's place and not what it says.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            refuse_credentials(str(key), where or "a key")
            refuse_credentials(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            refuse_credentials(value, f"{where}.{number}")
    elif isinstance(values, str) and _has_credentials(values):
        raise ValueError(
            f"{where}: a URL here must hold no password, token or signature; those of buckets are taken from the "
            "environment, and what else needs a login is put into the data set's folder by hand"
        )


def _has_credentials(text: str) -> bool:
    names = (name for query in _QUERY.findall(text) for name, _ in parse_qsl(query, keep_blank_values=True))
    return bool(_USER.search(text)) or any(map(_NAME.fullmatch, names))
