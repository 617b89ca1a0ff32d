"""Messages of Anthropic's API, in and out.

Out, the conversation follows the API's rules: what system and developer messages say stands apart, as text blocks; messages of
one role in a row are one message; results stand first in theirs; empty texts are left out; images and documents are base64,
url or file sources. A conversation has to begin with a user message, as what `Memory.get` returns does.

In, a message becomes one of ours, save that each tool result becomes a message of role `tool`. What a `ChatMessage` has no
field for is kept in `metadata["anthropic"]`: the fields of a response (`model`, `usage`, …), which are not sent back, and what
is left of content blocks without the texts, media and calls that are in our blocks, under `"content"`. Blocks of unknown types
(server tools, search results, those of the future) are kept whole and are counted.

Reasoning goes out when it has a signature; without one Anthropic refuses it. Sound and video, and files that are no PDF and
no text, are named in brackets, because there is no block for them.
"""

from memory_engine.formats.anthropic.reading import from_anthropic
from memory_engine.formats.anthropic.writing import AnthropicRequest, CachePoint, to_anthropic

__all__ = ["AnthropicRequest", "CachePoint", "from_anthropic", "to_anthropic"]
