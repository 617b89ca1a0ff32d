"""Messages of pydantic-ai, in and out.

Every `ModelRequest` becomes one `ChatMessage` for each of its prompts and tool returns, every `ModelResponse` one. Their texts,
media and calls are content blocks; all the rest of them is kept in `metadata["pydantic_ai"]`, so that nothing is lost. What
the framework itself writes into a request (feedback, notes of changes) becomes developer messages that are not pinned. What
a provider's own tools did within a response is counted as reasoning.
"""

from memory_engine.formats.pydantic_ai.reading import from_model_messages
from memory_engine.formats.pydantic_ai.stored import KnownParts, is_inserted
from memory_engine.formats.pydantic_ai.writing import MARK, to_model_messages

__all__ = ["MARK", "KnownParts", "from_model_messages", "is_inserted", "to_model_messages"]
