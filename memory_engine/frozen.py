"""Immutable JSON values, and the check that a value survives JSON exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, SupportsIndex

MAX_DEPTH = 100
MAX_DIGITS = 4000
"""More digits than this would meet Python's own limit (4300) when they are read back."""

_TOO_LONG = 10**MAX_DIGITS
_Path = tuple[object, ...]


def _immutable(self: object, *args: object, **kwargs: object) -> NoReturn:
    raise TypeError(f"{type(self).__name__} cannot be changed; copy it first: dict(value) or list(value)")


class FrozenDict(dict[str, Any]):
    """A dict of JSON values that nobody can change. It holds no reference to what it was made from.

    Its keys are sorted, so that a value looks the same before and after it was stored.

    :raises ValueError: a value that JSON cannot give back exactly.
    """

    __slots__ = ()

    def __new__(cls, value: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> FrozenDict:
        return _freeze_dict(dict(value), ())

    def __init__(self, value: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        """Nothing: `__new__` filled it, and a second call must not change it."""

    __setitem__ = __delitem__ = __ior__ = _immutable
    update = setdefault = pop = popitem = clear = _immutable

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def copy(self) -> FrozenDict:
        return self

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> FrozenDict:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))


class FrozenList(list[Any]):
    """A list of JSON values that nobody can change. It holds no reference to what it was made from.

    :raises ValueError: a value that JSON cannot give back exactly.
    """

    __slots__ = ()

    def __new__(cls, value: Iterable[Any] = ()) -> FrozenList:
        return _freeze_list(list(value), ())

    def __init__(self, value: Iterable[Any] = ()) -> None:
        """Nothing: `__new__` filled it, and a second call must not change it."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _immutable
    append = extend = insert = pop = remove = clear = sort = reverse = _immutable

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def copy(self) -> FrozenList:
        return self

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> FrozenList:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return (FrozenList, (list(self),))


def freeze_json(value: object) -> Any:
    """An immutable copy of a JSON value, equal to what reading its JSON gives back.

    Subclasses (`StrEnum`, `IntEnum`, ...) become their base type, tuples become lists.

    :raises ValueError: a key that is no text, another type, NaN or Infinity, an int of more than 4000 digits, a lone
        surrogate, or more than 100 levels; the message says where.
    """
    return _freeze(value, ())


def freeze_trusted(value: Any) -> Any:
    """`freeze_json` without its checks and its sorting, for what our own JSON gave back."""
    if isinstance(value, dict):
        frozen = dict.__new__(FrozenDict)
        for key, item in value.items():
            dict.__setitem__(frozen, key, freeze_trusted(item) if isinstance(item, (dict, list)) else item)
        return frozen
    if isinstance(value, list):
        items = list.__new__(FrozenList)
        list.extend(items, [freeze_trusted(item) for item in value])
        return items
    return value


def check_text(value: object) -> str:
    """The text as an exact `str`.

    :raises ValueError: it is no text, or it has a lone surrogate, which no database and no model API accepts.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be text (str), not {type(value).__name__}")
    text = value if type(value) is str else str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"has a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}, which cannot be stored; "
                "replace it: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None
    return text


def _freeze(value: object, path: _Path) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _checked(value, path)
    if isinstance(value, int):
        number = int(value)
        if not -_TOO_LONG < number < _TOO_LONG:
            raise ValueError(f"{_where(path)} is an int of more than {MAX_DIGITS} digits; store it as text")
        return number
    if isinstance(value, float):
        return _finite(float(value), path)
    if isinstance(value, Mapping):
        return _freeze_dict(value, path)
    if isinstance(value, (list, tuple)):
        return _freeze_list(value, path)
    raise ValueError(f"{_where(path)} is of type {type(value).__name__}, which JSON does not have; convert it to text first")


def _freeze_dict(value: Mapping[Any, Any], path: _Path) -> FrozenDict:
    _check_depth(path)
    frozen = dict.__new__(FrozenDict)
    pairs: list[tuple[str, Any]] = []
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{_where(path)} has the key {key!r:.80}; JSON keys are text")
        pairs.append((_checked(key, path), item))
    pairs.sort(key=lambda pair: pair[0])
    for key, item in pairs:
        dict.__setitem__(frozen, key, _freeze(item, (*path, key)))
    return frozen


def _freeze_list(value: list[Any] | tuple[Any, ...], path: _Path) -> FrozenList:
    _check_depth(path)
    frozen = list.__new__(FrozenList)
    list.extend(frozen, [_freeze(item, (*path, index)) for index, item in enumerate(value)])
    return frozen


def _checked(text: str, path: _Path) -> str:
    try:
        return check_text(text)
    except ValueError as error:
        raise ValueError(f"{_where(path)} {error}") from None


def _finite(number: float, path: _Path) -> float:
    if number - number != 0:
        raise ValueError(f"{_where(path)} is {number}, which JSON does not have; use None or text")
    return number


def _check_depth(path: _Path) -> None:
    if len(path) >= MAX_DEPTH:
        raise ValueError(f"{_where(path[:3])}... is nested deeper than {MAX_DEPTH} levels, or contains itself")


def _where(path: _Path) -> str:
    return "the value" + "".join(f"[{step!r}]" for step in path)
