"""PURE: a typed profile. Values are facts too, one for each field, and none that the schema refuses gets in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from memory_engine.blocks.facts.changes import Chunk, most_ended
from memory_engine.blocks.facts.entries import Entry
from memory_engine.blocks.facts.ledger import Ledger
from memory_engine.blocks.facts.replies import Reply, numbers_of
from memory_engine.blocks.understanding.replies import UnusableReplyError, object_of

LONGEST_VALUE = 2_000
"""Characters of a value as JSON."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Another value of a field as JSON; None: it has none any more."""

    field: str
    value: str | None
    messages: tuple[int, ...]


def fields_of(schema: type[BaseModel]) -> str:
    """The schema for the model that is to fill it in.

    :raises ValueError: there is no JSON schema for it.
    """
    try:
        return _fields_of(schema)
    except Exception as error:
        raise ValueError(f"a model cannot be told what fields {schema.__name__} has, it has no JSON schema: {error}") from error


def _fields_of(schema: type[BaseModel]) -> str:
    return json.dumps(schema.model_json_schema(by_alias=False), ensure_ascii=False)


def read_patches(text: str, schema: type[BaseModel], known: Mapping[str, Entry]) -> Reply[Patch]:
    """The changes of a reply that the schema accepts, given the values that are known.

    :raises UnusableReplyError: there is no object with a profile.
    """
    answer = object_of(text, "profile")["profile"]
    if not isinstance(answer, dict):
        raise UnusableReplyError('"profile" is not an object with a key for each field')
    found: list[Patch] = []
    wrong: list[str] = []
    for field, change in answer.items():
        try:
            found.append(_patch(field, change, schema))
        except ValueError as error:
            wrong.append(f"the field {field!r:.60} {error}")
    return _fitting(found, wrong, schema, values_of(known.values(), schema))


def _patch(field: str, change: Any, schema: type[BaseModel]) -> Patch:
    if field not in schema.model_fields:
        raise ValueError("is not in the schema")
    if not isinstance(change, dict) or "value" not in change:
        raise ValueError('is not an object with "value" and "messages"')
    numbers = numbers_of(change.get("messages"))
    if change["value"] is None:
        return Patch(field, None, numbers)
    value = _json(change["value"])
    if len(value) > LONGEST_VALUE:
        raise ValueError(f"has a value of {len(value)} characters; at most {LONGEST_VALUE} are kept")
    return Patch(field, value, numbers)


def _fitting(found: list[Patch], wrong: list[str], schema: type[BaseModel], known: dict[str, Any]) -> Reply[Patch]:
    """Without the patches that the schema refuses: each for itself, or all of them where it looks at several fields."""
    after = {**known, **{patch.field: json.loads(patch.value) for patch in found if patch.value is not None}}
    for patch in found:
        if patch.value is None:
            after.pop(patch.field, None)
    refused = refusals(schema, after)
    changed = {patch.field for patch in found}
    wrong += [f"the field {field!r} is refused: {reason}" for field, reason in refused.items() if field in changed]
    if "" in refused:
        return Reply((), (*wrong, f"the profile is refused: {refused['']}"))
    accepted: list[Patch] = []
    for patch in found:
        if patch.field in refused:
            continue
        try:
            accepted.append(patch if patch.value is None else replace(patch, value=_accepted(schema, after, patch.field)))
        except ValueError as error:
            wrong.append(f"the field {patch.field!r} is refused: {error}")
    return Reply(tuple(accepted), tuple(wrong))


def _accepted(schema: type[BaseModel], values: Mapping[str, Any], field: str) -> str:
    """A value as the schema understands it, as JSON: 61 where a model wrote "61".

    :raises ValueError: it cannot be kept as JSON, such as a number that is none.
    """
    try:
        profile = instance_of(values, schema)
        if profile is None:
            # Required fields are missing: what this one becomes by itself.
            profile = schema.model_construct()
            schema.__pydantic_validator__.validate_assignment(profile, field, values[field])
        understood = profile.model_dump(mode="json", include={field}, by_alias=False, warnings=False)[field]
        # What is written must be accepted when it is read again.
        if refusals(schema, {**values, field: understood}).keys() & {field, ""}:
            understood = values[field]
    except Exception:  # noqa: BLE001 - validators and serializers of others; the value as it came was accepted
        understood = values[field]
    return _json(understood)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def refusals(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, str]:
    """Why the schema refuses which of these values; "" is the profile as a whole. That values are missing is fine."""
    found: dict[str, str] = {}
    try:
        schema.model_validate_json(json.dumps(dict(values)), by_alias=False, by_name=True)
    except ValidationError as error:
        for field, kind, reason in _details(error, schema):
            if kind != "missing" or field in values:
                found.setdefault(field if field in values else "", reason)
    except Exception as error:  # noqa: BLE001 - validators of the schema are code of others, written for whole profiles
        found[""] = f"its validators raise {type(error).__name__}"
    for name in [name for name, value in values.items() if isinstance(value, bool) and name not in found]:
        # True is 1 for Python, but nobody's age.
        try:
            schema.model_validate_json(json.dumps({name: values[name]}), strict=True, by_alias=False, by_name=True)
        except ValidationError as error:
            found.update((field, reason) for field, _, reason in _details(error, schema) if field == name)
    return found


def _details(error: ValidationError, schema: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Field, kind and reason of each error; the field is "" for the whole."""
    names = {info.alias: name for name, info in schema.model_fields.items() if info.alias}
    details = error.errors(include_url=False, include_input=False, include_context=False)
    places = [str(detail["loc"][0]) if detail["loc"] else "" for detail in details]
    return [(names.get(place, place), one["type"], one["msg"]) for place, one in zip(places, details, strict=True)]


def values_of(entries: Iterable[Entry], schema: type[BaseModel]) -> dict[str, Any]:
    """The values that are known, in the order of the schema, without what it does not accept (any more)."""
    stored = {entry.field: entry.text or "null" for entry in entries if entry.field in schema.model_fields}
    values = {name: json.loads(stored[name]) for name in schema.model_fields if name in stored}
    refused = refusals(schema, values)
    return {name: value for name, value in values.items() if name not in refused}


def patch(ledger: Ledger, patches: Iterable[Patch], chunk: Chunk) -> list[str]:
    """Carry out patches that were accepted. Returns why some were ignored."""
    ignored: list[str] = []
    ends = most_ended(len(ledger.values()))
    for one in patches:
        proven = chunk.proven(one.messages)
        known = ledger.values().get(one.field)
        if proven is None:
            ignored.append(f"the field {one.field!r} has no message of the chunk")
        elif one.value is not None and known is not None:
            ledger.update(known.number, one.value, *proven)
        elif one.value is not None:
            ledger.add(one.value, *proven, field=one.field)
        elif known is not None and ends:
            ends -= 1
            ledger.retract(known.number, *proven)
        elif known is not None:
            ignored.append(f"the field {one.field!r} would be one more than a chunk may empty")
    return ignored


def instance_of(values: Mapping[str, Any], schema: type[BaseModel]) -> BaseModel | None:
    """The profile as an instance of the schema, None while required fields are missing or its validators refuse."""
    try:
        return schema.model_validate_json(json.dumps(dict(values)), by_alias=False, by_name=True)
    except Exception:  # noqa: BLE001 - validators of the schema are code of others
        return None
