"""The arguments of LlamaIndex's `Memory.from_defaults` as arguments of a `MemoryEngine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

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
