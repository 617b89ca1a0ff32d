"""Agents of LangChain and LangGraph that hold the shared conversation."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from pydantic import Field
from scenario import Script, add, engine_at, user_text, weather

from memory_engine import MemoryEngine
from memory_engine.integrations.langchain import GraphMemory, MemoryMiddleware, from_langchain, message_to_langchain
from memory_engine.messages import ChatMessage, ToolCallBlock

CONFIG: RunnableConfig = {"configurable": {"thread_id": "trip"}}
TOOLS = [tool(weather), tool(add)]


class ScriptedModel(BaseChatModel):
    """A chat model that answers by a function of our messages.

    `fail_at` are the numbers of the calls that raise; `careless` it changes the messages that it is given.
    """

    reply_to: Callable[[Sequence[ChatMessage]], Any]
    careless: bool = False
    fail_at: set[int] = Field(default_factory=set)
    prompts: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.prompts.append([message.model_copy() for message in messages])
        if len(self.prompts) in self.fail_at:
            raise ConnectionError("the model is down")
        reply = self.reply_to(from_langchain(messages))
        message = reply if isinstance(reply, BaseMessage) else message_of(reply)
        for sent in messages if self.careless else ():
            sent.content = "changed by the model"
            sent.additional_kwargs["changed"] = True
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages)


def message_of(reply: Any) -> AIMessage:
    """The reply of the script as a model's message."""
    calls = [ToolCallBlock(id=call.id, name=call.name, arguments=call.arguments) for call in reply.calls]
    texts = [{"type": "text", "text": reply.text}] if reply.text else []
    message = message_to_langchain(ChatMessage(role="assistant", blocks=[*texts, *calls]))
    assert isinstance(message, AIMessage)
    return message


class PlainState(TypedDict):
    """A state as the documentation of LangGraph has it."""

    messages: Annotated[list[AnyMessage], add_messages]


class SplitState(PlainState):
    """With a place of its own for what the model is sent."""

    llm_input_messages: list[AnyMessage]


def with_middleware(model: BaseChatModel, engine: MemoryEngine, **settings: Any) -> Any:
    """An agent of langchain 1.x."""
    middleware = [MemoryMiddleware(engine), *settings.pop("middleware", ())]
    return create_agent(model, TOOLS, system_prompt="You are a guide.", middleware=middleware, **settings)


def with_hooks(model: BaseChatModel, engine: MemoryEngine, **settings: Any) -> Any:
    """A prebuilt agent of LangGraph with its two hooks."""
    remember = GraphMemory(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # langgraph says itself that create_agent is newer
        return create_react_agent(
            model, TOOLS, pre_model_hook=remember.before_model, post_model_hook=remember.after_model, **settings
        )


def with_nodes(model: BaseChatModel, engine: MemoryEngine, **settings: Any) -> Any:
    """A graph of one's own in which memory's messages take the place of the state's."""
    remember = GraphMemory(engine, output_key="messages")

    async def call_model(state: PlainState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(PlainState)
    builder.add_node("memory", remember.before_model)
    builder.add_node("model", call_model)
    builder.add_node("record", remember.after_model)
    builder.add_node("tools", ToolNode(TOOLS))
    builder.add_edge(START, "memory")
    builder.add_edge("memory", "model")
    builder.add_edge("model", "record")
    builder.add_conditional_edges("record", tools_condition, ["tools", END])
    builder.add_edge("tools", "memory")
    return builder.compile(**settings)


AGENTS: dict[str, Callable[..., Any]] = {"middleware": with_middleware, "hooks": with_hooks, "nodes": with_nodes}


async def talk(kind: str, uri: str, turns: Sequence[int], **settings: Any) -> Script:
    """Hold these turns of the conversation with an agent of that kind; everything is made anew, and closed."""
    script = Script()
    async with engine_at(uri) as engine:
        # With "nodes" the model is given the state itself.
        model = ScriptedModel(reply_to=script.reply_to, careless=kind != "nodes")
        agent = AGENTS[kind](model, engine, **settings)
        for turn in turns:
            await agent.ainvoke({"messages": [HumanMessage(user_text(turn))]}, CONFIG)
    return script


async def go_on(uri: str, turns: range) -> Script:
    """These turns with the middleware."""
    return await talk("middleware", uri, turns)
