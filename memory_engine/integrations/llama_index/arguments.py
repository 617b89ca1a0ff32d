"""The arguments of LlamaIndex's `Memory.from_defaults` as arguments of a `MemoryEngine`, and what JSON can say of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any
from uuid import uuid4

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.memory.memory import DEFAULT_MEMORY_BLOCKS_TEMPLATE
from llama_index.core.prompts import BasePromptTemplate

from memory_engine.errors import ConfigurationError
from memory_engine.integrations.llama_index.blocks import as_block
from memory_engine.render import Section


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `MemoryEngine` takes for these; `llm` is not needed. What is not named here is taken as it is.

    :raises ConfigurationError: an argument has no counterpart.
    """
    arguments = {name: value for name, value in options.items() if value is not None and name != "llm"}
    if arguments.pop("chat_store", None) is not None:
        raise ConfigurationError("chat_store has no counterpart; give async_database_uri or async_engine.")
    if arguments.pop("db_schema", None) is not None:
        raise ConfigurationError("db_schema has no counterpart; set the search_path of the database's user, or table_name.")
    if (table := arguments.pop("table_name", None)) is not None:
        arguments.setdefault("table_prefix", f"{table}_")
    if isinstance(method := arguments.get("insert_method"), Enum):
        arguments["insert_method"] = method.value
    if "memory_blocks" in arguments:
        arguments["memory_blocks"] = [as_block(block) for block in arguments["memory_blocks"]]
    template = arguments.pop("memory_blocks_template", DEFAULT_MEMORY_BLOCKS_TEMPLATE)
    if template is not DEFAULT_MEMORY_BLOCKS_TEMPLATE:
        arguments["renderer"] = _rendered_by(template)
    limit, flush = arguments.get("token_limit"), arguments.get("token_flush_size")
    if isinstance(limit, int) and isinstance(flush, int) and flush > limit:
        # Theirs is 3,000 whatever the limit, and a smaller one follows from the limit.
        del arguments["token_flush_size"]
    return arguments


def _rendered_by(template: BasePromptTemplate) -> Callable[[Sequence[Section]], str]:
    def render(sections: Sequence[Section]) -> str:
        given = [(section.name, [TextBlock(text=text.text) for text in section.texts]) for section in sections]
        messages = template.format_messages(memory_blocks=given)
        return "\n".join(message.content or "" for message in messages)

    return render


def is_in_memory(arguments: Mapping[str, Any]) -> bool:
    """Whether an engine of these keeps nothing; two of them are never the same."""
    uri = arguments.get("async_database_uri")
    if arguments.get("async_engine") is not None or arguments.get("store") is not None:
        return False
    return uri is None or ":memory:" in str(uri) or str(uri).rstrip("/").endswith("aiosqlite:")


def name_for(arguments: Mapping[str, Any]) -> str:
    """The same in every process for the same arguments, as far as they can be told; without secrets."""
    if is_in_memory(arguments):
        return f"memory-{uuid4()}"
    plain, needs = portable(arguments)
    digest = hashlib.sha256(json.dumps([plain, needs], sort_keys=True).encode()).hexdigest()[:12]
    return f"{plain.get('async_database_uri') or needs.get('async_database_uri') or 'engine'}#{digest}"


def portable(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments that JSON can carry and that hold no secret, and of the others a text each."""
    plain: dict[str, Any] = {}
    needs: dict[str, str] = {}
    for name, value in sorted(arguments.items()):
        if name == "async_database_uri":
            masked, secret = _masked(str(value))
            (needs if secret else plain)[name] = masked
        elif name == "memory_blocks":
            if value:
                needs[name] = ", ".join(block.name for block in value)
        elif isinstance(value, str | int | float | bool | None):
            plain[name] = value
        else:
            needs[name] = type(value).__name__
    return plain, needs


def _masked(uri: str) -> tuple[str, bool]:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return "a database", True  # the engine refuses it a moment later, by name
    # Drivers take passwords and keys as parameters too; few parameters are needed, so none is written down.
    secret = url.password is not None or (bool(url.query) and not url.drivername.startswith("sqlite"))
    return url.set(query={} if secret else url.query).render_as_string(hide_password=True), secret


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one engine will do for both."""
    try:
        return bool(dict(one) == dict(other))
    except Exception:  # noqa: BLE001 - comparing blocks runs their authors' code
        return False
