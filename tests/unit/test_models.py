"""Language models of blocks: whatever the user has is called the same way, in time, again when busy, and counted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from local_service import Service, package_class, serving
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from memory_engine import BlockUnavailableError
from memory_engine.blocks.models import Completion, ModelCaller, OpenAICompatibleModel, Prompt, PydanticAIModel, caller
from memory_engine.errors import BlockError, BlockResultError, ConfigurationError, MissingExtraError
from memory_engine.testing import ScriptedLLM
from memory_engine.usage import Usage

PROMPT: Prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Ada?"}]


def words(text: str) -> int:
    return len(text.split())


async def complete(llm: Any, usage: Usage | None = None, prompt: Prompt = PROMPT, **settings: Any) -> str:
    return await ModelCaller(llm, **settings).complete(prompt, count=words, usage=usage if usage is not None else Usage())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited before a repetition."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(caller, "pause", pause)
    return waited


# -- calling ---------------------------------------------------------------------------------------------------------


async def test_an_async_function_is_a_model() -> None:
    llm, usage = ScriptedLLM(["In Turin."]), Usage()
    assert await complete(llm, usage) == "In Turin."
    assert llm.prompts == [PROMPT]
    assert usage == Usage(calls=1, input_tokens=5, output_tokens=2)


async def test_what_the_model_says_of_its_tokens_is_believed() -> None:
    async def llm(messages: Prompt) -> Completion:
        return Completion("In Turin.", 70, 30)

    usage = Usage()
    await complete(llm, usage)
    assert usage == Usage(calls=1, input_tokens=70, output_tokens=30)


async def test_a_sync_function_runs_in_a_thread() -> None:
    def llm(messages: Prompt) -> str:
        return threading.current_thread().name

    assert (await complete(llm)).startswith("memory-engine-model")


async def test_a_model_cannot_change_the_prompt() -> None:
    async def llm(messages: Prompt) -> str:
        messages[0]["content"] = "changed"
        messages.clear()
        return "done"

    prompt: Prompt = [{"role": "user", "content": "stays"}]
    await complete(llm, prompt=prompt)
    assert prompt == [{"role": "user", "content": "stays"}]


async def test_a_slow_model_is_unavailable() -> None:
    usage = Usage()
    with pytest.raises(BlockUnavailableError, match=r"did not answer within 0\.01 seconds"):
        await complete(ScriptedLLM("too late", delay=5), usage, timeout=0.01, retries=0)
    assert usage == Usage(calls=1, failed=1)


class Busy(Exception):
    def __init__(self, status: int, wait: str | None = None) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status, headers={} if wait is None else {"retry-after": wait})


async def test_a_model_that_gives_up_by_itself_is_not_said_to_be_slow() -> None:
    llm = ScriptedLLM([TimeoutError("the service was busy")])
    with pytest.raises(BlockUnavailableError) as caught:
        await ModelCaller(llm, retries=0).complete(PROMPT, count=len, usage=Usage())
    assert "did not answer within" not in str(caught.value) and "the service was busy" in str(caught.value)


async def test_nobody_is_asked_when_no_time_is_left() -> None:
    llm, usage = ScriptedLLM(["never"]), Usage()
    with pytest.raises(BlockUnavailableError, match="no time is left"):
        await ModelCaller(llm).complete(PROMPT, count=len, usage=usage, deadline=time.monotonic() - 1)
    assert (usage, llm.prompts) == (Usage(), [])


async def test_a_busy_model_is_asked_again_when_it_wants(pauses: list[float]) -> None:
    usage = Usage()
    assert await complete(ScriptedLLM([Busy(429, "7"), ConnectionError("gone"), "In Turin."]), usage) == "In Turin."
    assert usage == Usage(calls=3, input_tokens=5, output_tokens=2, failed=2)
    assert pauses[0] == 7.0
    assert 0.5 <= pauses[1] <= 1.0, "it did not say: half a second, doubled for each failure"


async def test_retries_are_bounded(pauses: list[float]) -> None:
    llm = ScriptedLLM(otherwise=Busy(503))
    with pytest.raises(BlockUnavailableError, match="status 503"):
        await complete(llm, retries=3)
    assert len(llm.prompts) == 4 and len(pauses) == 3


async def test_a_long_wait_is_left_to_the_engine(pauses: list[float]) -> None:
    with pytest.raises(BlockUnavailableError) as caught:
        await complete(ScriptedLLM([Busy(429, "300")]))
    assert caught.value.retry_after == 300.0
    assert pauses == []


@pytest.mark.parametrize("error", [ValueError("no such model"), Busy(401), Busy(400)])
async def test_other_failures_are_not_repeated(error: Exception, pauses: list[float]) -> None:
    with pytest.raises(BlockError) as caught:
        await complete(ScriptedLLM([error]))
    assert not isinstance(caught.value, BlockUnavailableError)
    assert caught.value.__cause__ is error
    assert pauses == []


@pytest.mark.parametrize("answer", [None, 5, b"bytes", ["text"]])
async def test_an_answer_that_is_no_text_is_refused(answer: Any) -> None:
    async def llm(messages: Prompt) -> Any:
        return answer

    with pytest.raises(BlockResultError, match="must return a str"):
        await complete(llm)


async def test_an_answer_is_bounded_and_can_be_encoded() -> None:
    answer = await complete(ScriptedLLM(["\ud800" + "x" * 10_000_000]))
    assert len(answer) == caller.LONGEST_REPLY
    answer.encode()


async def test_cancelling_is_no_failure() -> None:
    usage = Usage()
    task = asyncio.create_task(complete(ScriptedLLM("late", delay=60), usage))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert usage == Usage(calls=1)


@pytest.mark.parametrize(
    ("llm", "says"),
    [
        (None, "async function"),
        (5, "async function"),
        (ScriptedLLM, "class ScriptedLLM; give an instance"),
        (package_class("openai.lib", "AsyncOpenAI")(), "which model to use"),
        (Agent("test"), "Agent of pydantic-ai, not a model"),
        (package_class("llama_index.core.embeddings", "MyEmbedding")(), "MyEmbedding of LlamaIndex, which cannot chat"),
        (package_class("langchain_core.tools", "MyTool")(), "MyTool of LangChain, which cannot be invoked"),
    ],
)
def test_what_is_no_model_is_refused(llm: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ModelCaller(llm)


# -- services --------------------------------------------------------------------------------------------------------


class Chat(Service):
    """Answers as an endpoint for chat."""

    def answer(self, body: dict[str, Any]) -> bytes:
        said = f"You said: {body['messages'][-1]['content']}"
        usage = {"prompt_tokens": 11, "completion_tokens": 4}
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}], "usage": usage}).encode()


@pytest.fixture
async def service() -> AsyncIterator[Chat]:
    async with serving(Chat()) as running:
        yield running


async def test_a_service_is_asked_as_openai_is(service: Chat) -> None:
    usage = Usage()
    async with OpenAICompatibleModel("small", base_url=service.url, api_key="secret", options={"temperature": 0}) as model:
        assert await complete(model, usage) == "You said: Where is Ada?"
        assert "secret" not in repr(model)
    assert service.requests == [
        {"request": "POST /v1/chat/completions HTTP/1.1", "model": "small", "messages": PROMPT, "temperature": 0}
    ]
    assert service.headers[0]["authorization"] == "Bearer secret"
    assert usage == Usage(calls=1, input_tokens=11, output_tokens=4)


async def test_a_service_that_limits_the_rate_is_asked_again(service: Chat, pauses: list[float]) -> None:
    service.plan = [(429, {"Retry-After": "3"}, b"slow down"), (500, {}, b""), None]
    usage = Usage()
    async with OpenAICompatibleModel("small", base_url=service.url) as model:
        assert await complete(model, usage, retries=3) == "You said: Where is Ada?"
    assert usage.calls == 4 and usage.failed == 3
    assert pauses[0] == 3.0


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[]", b'{"error": {"message": "no"}}']
)
async def test_another_answer_is_named(body: bytes, service: Chat) -> None:
    service.plan = [(200, {}, body)]
    async with OpenAICompatibleModel("small", base_url=service.url) as model:
        with pytest.raises(BlockResultError, match="did not answer with a chat completion"):
            await complete(model)


async def test_an_empty_answer_is_an_empty_text(service: Chat) -> None:
    service.plan = [(200, {}, b'{"choices": [{"message": {"content": null}}], "usage": {"prompt_tokens": "many"}}')]
    async with OpenAICompatibleModel("small", base_url=service.url) as model:
        assert await complete(model) == ""


async def test_a_wrong_key_is_no_reason_to_wait(service: Chat) -> None:
    service.plan = [(401, {}, b"who are you?")]
    async with OpenAICompatibleModel("small", base_url=service.url) as model:
        with pytest.raises(BlockError, match="who are you"):
            await complete(model)


async def test_a_client_of_openai_may_be_given() -> None:
    asked: list[dict[str, Any]] = []

    async def create(**body: Any) -> Any:
        asked.append(body)
        message = SimpleNamespace(content="In Turin.")
        usage = SimpleNamespace(prompt_tokens=9, completion_tokens=3)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage=usage)

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    usage = Usage()
    assert await complete(OpenAICompatibleModel("small", client=client, options={"seed": 1}), usage) == "In Turin."
    assert asked == [{"model": "small", "messages": PROMPT, "seed": 1}]
    assert usage == Usage(calls=1, input_tokens=9, output_tokens=3)


@pytest.mark.parametrize("url", ["localhost:1/v1", ""])
def test_an_address_is_checked_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http"):
        OpenAICompatibleModel("small", base_url=url)


# -- other libraries -------------------------------------------------------------------------------------------------


async def test_models_of_pydantic_ai() -> None:
    seen: list[list[ModelMessage]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(messages)
        return ModelResponse(parts=[TextPart("In "), TextPart("Turin.")])

    prompt: Prompt = [*PROMPT, {"role": "assistant", "content": "Who?"}, {"role": "user", "content": "Ada."}]
    usage = Usage()
    assert await complete(FunctionModel(answer), usage, prompt=prompt) == "In Turin."
    told = [(part.part_kind, part.content) for message in seen[0] for part in message.parts]  # type: ignore[union-attr]
    assert told == [
        ("system-prompt", "Be brief."),
        ("user-prompt", "Where is Ada?"),
        ("text", "Who?"),
        ("user-prompt", "Ada."),
    ]
    assert [message.kind for message in seen[0]] == ["request", "response", "request"]
    assert usage.calls == 1 and usage.input_tokens > 0 and usage.output_tokens > 0


async def test_a_name_is_a_model_of_pydantic_ai() -> None:
    assert "test" in repr(PydanticAIModel("test"))
    assert await complete("test") != ""


async def test_llms_of_llama_index(monkeypatch: pytest.MonkeyPatch) -> None:
    llms = ModuleType("llama_index.core.llms")
    llms.ChatMessage = SimpleNamespace  # type: ignore[attr-defined]
    for name, module in (("llama_index", ModuleType("llama_index")), ("llama_index.core.llms", llms)):
        monkeypatch.setitem(sys.modules, name, module)
    asked: list[Any] = []

    async def achat(self: Any, messages: list[Any]) -> Any:
        asked.append([(one.role, one.content) for one in messages])
        return SimpleNamespace(message=SimpleNamespace(content="In Turin."), additional_kwargs={"prompt_tokens": 8})

    llm = package_class("llama_index.core.llms.llm", "MyLLM", achat=achat)()
    usage = Usage()
    assert await complete(llm, usage) == "In Turin."
    assert asked == [[("system", "Be brief."), ("user", "Where is Ada?")]]
    assert usage == Usage(calls=1, input_tokens=8, output_tokens=2)


@pytest.mark.parametrize("content", ["In Turin.", ["In ", {"type": "text", "text": "Turin."}]])
async def test_chat_models_of_langchain(content: Any) -> None:
    asked: list[Any] = []

    async def ainvoke(self: Any, messages: Any) -> Any:
        asked.append(messages)
        return SimpleNamespace(content=content, usage_metadata={"input_tokens": 7, "output_tokens": 3})

    llm = package_class("langchain_core.language_models.chat_models", "MyChat", ainvoke=ainvoke, model_name="tiny")()
    usage = Usage()
    assert await complete(llm, usage) == "In Turin."
    assert asked == [[("system", "Be brief."), ("user", "Where is Ada?")]]
    assert usage == Usage(calls=1, input_tokens=7, output_tokens=3)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    with pytest.raises(MissingExtraError, match=r"memory-engine-blocks\[llm\]"):
        ModelCaller("openai:gpt-5-mini")


def test_importing_models_loads_no_client() -> None:
    program = (
        "import sys, memory_engine.blocks.models as m; m.ModelCaller; "
        "print([n for n in ('httpx', 'openai', 'pydantic_ai', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
