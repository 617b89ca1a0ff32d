"""`OpenAIAgentsSession`: a memory as the session of OpenAI's Agents SDK (`pip install 'memory-engine-blocks[openai-agents]'`).

    session = OpenAIAgentsSession(engine.session("chat-1"))
    result = await Runner.run(agent, "Hello", session=session, run_config=session.run_config())

The SDK asks for the history once, at the beginning of a run, and adds the new input and its own items to it while it runs:
reserve what these, the instructions and the tools need with `reserved_tokens`.
"""

from __future__ import annotations

from memory_engine.errors import MissingExtraError

try:
    import agents  # noqa: F401  (what all of it needs)
except ImportError as error:
    raise MissingExtraError(
        "OpenAIAgentsSession needs OpenAI's Agents SDK; pip install 'memory-engine-blocks[openai-agents]'."
    ) from error

from memory_engine.integrations.openai_agents.session import OpenAIAgentsSession

__all__ = ["OpenAIAgentsSession"]
