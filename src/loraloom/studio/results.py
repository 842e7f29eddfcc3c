"""What any door shows of a result: plain data that JSON can hold, made by one function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from loraloom.settings import Settings

__all__ = ["to_record"]


def to_record(result: object) -> Any:
    """A result as JSON-ready data: dataclasses and settings are tables, paths text, NaN and infinite numbers null.

    Fields that a dataclass keeps to itself (``repr=False``) are left out. A size such as a bucket's becomes its text
    where it is the key of a table. Raises TypeError for what has no place
    in JSON (a tensor, a picture), since a door that left it out would show half a result.
    """
    # An entry of an enumeration may be a text or a number itself, so it is asked for before them.
    match result:
        case Enum():
            return to_record(result.value)
        case None | bool() | int() | str():
            return result
        case float():
            return result if math.isfinite(result) else None
        case Path():
            return str(result)
        case datetime():
            return result.isoformat()
        case Settings():
            return to_record(result.model_dump(mode="python"))
        case Mapping():
            return {_key(key): to_record(value) for key, value in result.items()}
        case list() | tuple():
            return [to_record(item) for item in result]
        case AbstractSet():
            return sorted(to_record(item) for item in result)
        case _ if is_dataclass(result) and not isinstance(result, type):
            return {field.name: to_record(getattr(result, field.name)) for field in fields(result) if field.repr}

    raise TypeError(f"{type(result).__name__} is no data for JSON")


def _key(key: object) -> str:
    plain = to_record(key)
    return "x".join(map(str, plain)) if isinstance(plain, list) else str(plain)
