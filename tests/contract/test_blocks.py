"""Blocks of the kinds that authors write, each under the whole contract: what they need is there, nothing else is needed."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from operator import mul
from pathlib import Path
from typing import Any, List, Optional  # noqa: UP035 - as in LlamaIndex's guide

import pytest
from pydantic import BaseModel, Field

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, Memory, MemoryEngine, TextBlock
from memory_engine.blocks import EntityMemoryBlock, FactExtractionMemoryBlock, SummaryMemoryBlock, VectorMemoryBlock
from memory_engine.errors import BlockError
from memory_engine.testing import BlockContract, FakeEmbedder, ScriptedLLM

QUICK = Limits(get=10.0, first_retry=0.01, last_retry=0.05, lease=5.0, poll=0.05)


# -- a counter, as LlamaIndex's guide writes it ------------------------------------------------------------------


class MentionCounter(BaseMemoryBlock[str]):
    """
    A memory block that counts the number of times a user mentions a specific name.
    """

    mention_name: str = "Logan"
    mention_count: int = 0

    async def _aget(
        self,
        messages: Optional[List[ChatMessage]] = None,  # noqa: UP006, UP045
        **block_kwargs: Any,
    ) -> str:
        return f"Logan was mentioned {self.mention_count} times."

    async def _aput(self, messages: List[ChatMessage]) -> None:  # noqa: UP006
        for message in messages:
            if self.mention_name in message.content:
                self.mention_count += 1

    async def atruncate(
        self,
        content: str,
        tokens_to_truncate: int,
    ) -> Optional[str]:  # noqa: UP045
        return ""


class PatientCounter(MentionCounter):
    """Says that it can be left out with None, and never must be cut."""

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        return None


# -- facts: records with provenance, a model, supersession -------------------------------------------------------


class Facts(BaseMemoryBlock[list[TextBlock]]):  # type: ignore[type-var]
    """One record for each fact, one for each "is not true any more"; both go with the message they came from."""

    name: str = "facts"
    llm: Any = Field(exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        known = await self.current()
        said = [f"{seq}: {message.content}" for seq, message in zip(self.context.seqs, messages, strict=True)]
        prompt = [
            {"role": "system", "content": json.dumps([{"key": key, "fact": fact} for key, fact, _ in known])},
            *({"role": "user", "content": text} for text in said),
        ]
        for number, found in enumerate(json.loads(await self.llm(prompt))):
            key = f"fact:{self.context.session_uid}:{found['seq']:09d}:{number}"
            self.records.put(key, found["fact"], seq=found["seq"])
            if found["supersedes"]:
                self.records.put(f"over:{found['supersedes']}", seq=found["seq"])

    async def current(self) -> list[tuple[str, str, int | None]]:
        over = {record.key.removeprefix("over:") for record in await self.records.list("over:")}
        return [(r.key, r.data, r.seq) for r in await self.records.list("fact:") if r.key not in over]

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[TextBlock]:
        facts = await self.current()
        return [TextBlock(text=fact, tag="fact", value=float(n), seq=seq) for n, (_, fact, seq) in enumerate(facts)]

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        # The engine has deleted the records of these messages; marks for facts that are gone are of no use any more.
        facts = {record.key for record in await self.records.list("fact:")}
        for record in await self.records.list("over:"):
            if record.key.removeprefix("over:") not in facts:
                self.records.delete(record.key)


HOME = re.compile(r"I (?:live in|moved to) (\w+)")
CODE = re.compile(r"the code of my locker is (\S+?)\.")


def extract(prompt: list[dict[str, str]]) -> str:
    """A model that finds homes and locker codes."""
    known = json.loads(prompt[0]["content"])
    found: list[dict[str, Any]] = []
    for line in prompt[1:]:
        seq, _, text = line["content"].partition(": ")
        for home in HOME.findall(text):
            before = next((item["key"] for item in known if item["fact"].startswith("lives in")), None)
            found.append({"seq": int(seq), "fact": f"lives in {home}", "supersedes": before})
        found += [{"seq": int(seq), "fact": f"locker code {code}", "supersedes": None} for code in CODE.findall(text)]
    return json.dumps(found)


# -- a summary: one field, and a record for each version ---------------------------------------------------------


class Summary(BaseMemoryBlock[str]):
    name: str = "summary"
    depends_on_query: bool = False
    priority: int = 1
    text: str = ""
    version: int = 0
    llm: Any = Field(exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.text = await self.llm([self.text, *(message.content for message in messages)])
        self.version += 1
        self.records.put(f"{self.version:06d}", {"text": self.text, "to": self.context.seqs[-1]})

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return self.text

    async def expand(self, version: int) -> str:
        """How the summary read at that version."""
        record = await self.records.get(f"{version:06d}")
        return record.data["text"] if record else ""


# -- vectors: records with blobs, searched in a cache that follows the database ----------------------------------


class Vectors(BaseMemoryBlock[list[TextBlock]]):  # type: ignore[type-var]
    name: str = "vectors"
    priority: int = 2
    top: int = 3
    embed: Any = Field(exclude=True)
    cache: dict[str, Any] = Field(default_factory=dict, exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        vectors = await self.embed([message.content for message in messages])
        for seq, message, vector in zip(self.context.seqs, messages, vectors, strict=True):
            key = f"{self.context.session_uid}:{seq:09d}"
            self.records.put(key, message.content, blob=array("f", vector).tobytes(), seq=seq)

    async def items(self) -> dict[str, tuple[str, int | None, array[float]]]:
        """All items of this scope; only those that changed since the last look are read."""
        version, items = self.cache.get(self.context.scope_key, (None, {}))
        if version is None or self.context.deleted_version > version:
            version, items = None, {}
        for record in await self.records.list(changed_since=version):
            items[record.key] = (record.data, record.seq, array("f", record.blob or b""))
        self.cache[self.context.scope_key] = (self.context.state_version, items)
        return items

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[TextBlock]:
        items = await self.items()
        if not messages or not items:
            return []
        [query] = await self.embed([messages[-1].content])
        scored = sorted(((sum(map(mul, query, vector)), key) for key, (_, _, vector) in items.items()), reverse=True)
        return [
            TextBlock(text=items[key][0], tag="message", value=score, seq=items[key][1])
            for score, key in scored[: self.top]
            if items[key][1] not in self.context.shown
        ]

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Nothing to do: every item is a record of its message."""


# -- messages: a section that is a conversation ------------------------------------------------------------------


class Episodes(BaseMemoryBlock[list[ChatMessage]]):
    name: str = "episodes"
    priority: int = 3

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for seq, message in zip(self.context.seqs, messages, strict=True):
            self.records.put(f"{self.context.session_uid}:{seq:09d}", message.model_dump(mode="json"), seq=seq)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ChatMessage]:
        return [
            ChatMessage.model_validate({name: record.data[name] for name in ("role", "blocks")})
            for record in await self.records.list()
        ]


# -- all of them under the contract ------------------------------------------------------------------------------


class TestMentionCounter(BlockContract):
    @pytest.fixture
    def block(self) -> MentionCounter:
        return MentionCounter()


class TestPatientCounter(BlockContract):
    @pytest.fixture
    def block(self) -> PatientCounter:
        return PatientCounter(mention_name="Ada", priority=4, max_tokens=50)


class TestFacts(BlockContract):
    @pytest.fixture
    def block(self) -> Facts:
        return Facts(llm=ScriptedLLM(otherwise=extract), priority=1)


class TestSummary(BlockContract):
    @pytest.fixture
    def block(self) -> Summary:
        return Summary(llm=ScriptedLLM(otherwise=lambda prompt: " ".join(prompt)[-300:]))


class TestVectors(BlockContract):
    @pytest.fixture
    def block(self) -> Vectors:
        return Vectors(embed=FakeEmbedder(32))


class TestVectorsOfAUser(TestVectors):
    @pytest.fixture
    def block(self) -> Vectors:
        return Vectors(embed=FakeEmbedder(32), scope="user")


class TestEpisodes(BlockContract):
    @pytest.fixture
    def block(self) -> Episodes:
        return Episodes()

    async def observe(self, block: BaseMemoryBlock[Any]) -> Any:
        # Messages carry the id and time of their session; their content is what is to be compared.
        fields, records = await super().observe(block)
        return fields, [(seq, data["blocks"]) for seq, data, _ in records]


class TestVectorMemoryBlock(BlockContract):
    @pytest.fixture
    def block(self) -> VectorMemoryBlock:
        return VectorMemoryBlock()

    async def observe(self, block: BaseMemoryBlock[Any]) -> Any:
        # Two runs say the same at different times.
        fields, records = await super().observe(block)
        return fields, [(seq, {**data, "at": None}, blob) for seq, data, blob in records]


class TestVectorMemoryBlockWithAnEmbedder(TestVectorMemoryBlock):
    @pytest.fixture
    def block(self) -> VectorMemoryBlock:
        return VectorMemoryBlock(embed_model=FakeEmbedder(32), max_tokens=200)


def remember(prompt: list[dict[str, str]]) -> str:
    """A model that goes on with what it has and keeps the last words of everything that was said."""
    data = prompt[1]["content"]
    before = re.search(r"<summary_so_far>\n(.*?)\n</summary_so_far>", data, re.DOTALL)
    said = re.findall(r"<message[^>]*>\n(.*?)\n</message>", data, re.DOTALL)
    return " ".join([before[1] if before else "", *(" ".join(text.split()[-5:]) for text in said)])


class TestSummaryMemoryBlock(BlockContract):
    @pytest.fixture
    def block(self) -> SummaryMemoryBlock:
        return SummaryMemoryBlock(llm=ScriptedLLM(otherwise=remember), max_summary_tokens=100)

    async def observe(self, block: BaseMemoryBlock[Any]) -> Any:
        # Two runs are other sessions, at other times, and the prompts have them in.
        fields, records = await super().observe(block)
        fields = {name: value for name, value in fields.items() if not name.endswith("_tokens")}
        fields["waiting"] = [span[1:] for span in fields["waiting"]]
        kept = [
            (data["text"], [span[1:] for span in data["added"]]) if isinstance(data, dict) else [span[1:] for span in data]
            for _, data, _ in records
        ]
        return fields, kept


class TestSummaryMemoryBlockOfThreeChunks(TestSummaryMemoryBlock):
    @pytest.fixture
    def block(self) -> SummaryMemoryBlock:
        return SummaryMemoryBlock(
            llm=ScriptedLLM(otherwise=remember), summarize_every=3, keep_versions=1, must_keep=[self.secret], max_tokens=200
        )


SAID_IN = re.compile(r'<message n="(\d+)"[^>]*>\n(.*?)\n</message>', re.DOTALL)
KNOWN = re.compile(r'<fact id="(f\d+)">(.*?)</fact>')


def operate(prompt: list[dict[str, str]]) -> str:
    """A model that finds homes and locker codes, corrects homes, and merges whatever it is asked to."""
    known = KNOWN.findall(prompt[1]["content"])
    homes = [fact for fact, text in known if text.startswith("lives in")]
    found: list[dict[str, Any]] = []
    for number, text in SAID_IN.findall(prompt[1]["content"]):
        about = {"messages": [int(number)]}
        for home in HOME.findall(text):
            change = {"op": "update", "fact": homes[0]} if homes else {"op": "add"}
            found.append({**change, "text": f"lives in {home}", **about})
        found += [{"op": "add", "text": f"has the locker code {code}", **about} for code in CODE.findall(text)]
        if "tea" in text:
            found.append({"op": "add", "text": "likes tea", **about})
    merges = []
    if "merges" in prompt[0]["content"]:
        merges.append({"facts": [fact for fact, _ in known[:2]], "text": " and ".join(text for _, text in known[:2])})
    return json.dumps({"operations": found, "merges": merges})


class Profile(BaseModel):
    home: str
    code: str = ""


def fill_in(prompt: list[dict[str, str]]) -> str:
    """The same for a profile."""
    found: dict[str, Any] = {}
    for number, text in SAID_IN.findall(prompt[1]["content"]):
        for field, pattern in (("home", HOME), ("code", CODE)):
            for value in pattern.findall(text):
                found[field] = {"value": value, "messages": [int(number)]}
    return json.dumps({"profile": found})


class TestFactExtractionMemoryBlock(BlockContract):
    @pytest.fixture
    def block(self) -> FactExtractionMemoryBlock:
        return FactExtractionMemoryBlock(llm=ScriptedLLM(otherwise=operate))

    async def observe(self, block: BaseMemoryBlock[Any]) -> Any:
        # Two runs say the same at different times and under different ids.
        fields, records = await super().observe(block)
        return fields, [(seq, {**data, "since": None, "message": None}, blob) for seq, data, blob in records]


class TestFactsThatAreCondensed(TestFactExtractionMemoryBlock):
    @pytest.fixture
    def block(self) -> FactExtractionMemoryBlock:
        return FactExtractionMemoryBlock(llm=ScriptedLLM(otherwise=operate), max_facts=1, max_tokens=60)


class TestProfile(TestFactExtractionMemoryBlock):
    @pytest.fixture
    def block(self) -> FactExtractionMemoryBlock:
        return FactExtractionMemoryBlock(llm=ScriptedLLM(otherwise=fill_in), schema=Profile)


def note_down(prompt: list[dict[str, str]]) -> str:
    """A model that notes the whole message for every capitalised word in it, after what it knows of the word."""
    data = prompt[1]["content"]
    known = {one["name"]: one["text"] for one in map(json.loads, re.findall(r"^\{.*\}$", data, re.MULTILINE))}
    notes: dict[str, dict[str, Any]] = {}
    for number, text in re.findall(r'<message n="(\d+)"[^>]*>\n(.*?)\n</message>', data, re.DOTALL):
        for name in re.findall(r"\b[A-Z]\w+", text):
            one = notes.setdefault(name, {"name": name, "text": known.get(name, ""), "messages": []})
            one["text"] = " ".join([*one["text"].split(), *text.split()])
            one["messages"].append(int(number))
    return json.dumps({"entities": list(notes.values())})


class TestEntityMemoryBlock(BlockContract):
    @pytest.fixture
    def block(self) -> EntityMemoryBlock:
        return EntityMemoryBlock(llm=ScriptedLLM(otherwise=note_down), max_entity_tokens=60)

    async def observe(self, block: BaseMemoryBlock[Any]) -> Any:
        fields, records = await super().observe(block)
        # As for the summary.
        fields = {name: value for name, value in fields.items() if not name.endswith("_tokens")}
        return fields, [(seq, {**data, "messages": [n for _, n in data["messages"]]}) for seq, data, _ in records]


class TestEntitiesWithLittleRoom(TestEntityMemoryBlock):
    @pytest.fixture
    def block(self) -> EntityMemoryBlock:
        return EntityMemoryBlock(llm=ScriptedLLM(otherwise=note_down), max_tokens=60, priority=3)


# -- what only these blocks can show -----------------------------------------------------------------------------


@asynccontextmanager
async def engine_of(folder: Path, *blocks: BaseMemoryBlock[Any], **settings: Any) -> AsyncIterator[MemoryEngine]:
    uri = f"sqlite+aiosqlite:///{folder / 'memory.db'}"
    async with MemoryEngine(async_database_uri=uri, memory_blocks=blocks, limits=QUICK, **settings) as engine:
        yield engine


async def tell(memory: Memory, *texts: str) -> list[str]:
    stored = await memory.put_messages([{"role": "user", "content": text} for text in texts])
    await memory.flush(final=True)
    await memory.drain(30)
    return [message.id or "" for message in stored]


@pytest.mark.asyncio
async def test_the_guides_block_counts_in_the_prompt(tmp_path: Path) -> None:
    async with engine_of(tmp_path, MentionCounter(name="mentions")) as engine:
        memory = engine.session("my_session")
        await tell(memory, "Logan is here", "no one", "Logan and Logan")
        [system] = await memory.get()
        assert system.role == "system"
        assert "<mentions>\nLogan was mentioned 2 times.\n</mentions>" in system.content


@pytest.mark.asyncio
async def test_facts_supersede_each_other_and_come_back(tmp_path: Path) -> None:
    async with engine_of(tmp_path, Facts(llm=ScriptedLLM(otherwise=extract))) as engine:
        memory = engine.session("one")
        await tell(memory, "I live in Turin.")
        [moved] = await tell(memory, "I moved to Genoa.")
        block = await memory.block("facts")
        assert [fact for _, fact, _ in await block.current()] == ["lives in Genoa"]
        [system] = await memory.get()
        assert "<fact>lives in Genoa</fact>" in system.content
        await memory.delete([moved])
        await memory.drain(30)
        block = await memory.block("facts")
        assert [fact for _, fact, _ in await block.current()] == ["lives in Turin"]


@pytest.mark.asyncio
async def test_facts_of_a_user_forget_one_session(tmp_path: Path) -> None:
    async with engine_of(tmp_path, Facts(llm=ScriptedLLM(otherwise=extract), scope="user")) as engine:
        one, two = engine.session("one", user_id="ada"), engine.session("two", user_id="ada")
        await tell(one, "I live in Turin.")
        await tell(two, "I moved to Genoa.", "the code of my locker is 12.")
        assert [fact for _, fact, _ in await (await one.block("facts")).current()] == ["lives in Genoa", "locker code 12"]
        await engine.delete_session("two")
        await engine.drain(30)
        assert [fact for _, fact, _ in await (await one.block("facts")).current()] == ["lives in Turin"]


@pytest.mark.asyncio
async def test_the_least_valuable_facts_are_cut_first(tmp_path: Path) -> None:
    facts = Facts(llm=ScriptedLLM(otherwise=extract), priority=1, max_tokens=20)
    async with engine_of(tmp_path, facts) as engine:
        memory = engine.session("one")
        await tell(memory, *(f"the code of my locker is {n}." for n in range(100)))
        context = await memory.context()
        [system] = context.messages
        shown = re.findall(r"<fact>locker code (\d+)</fact>", system.content)
        assert shown == [str(n) for n in range(100 - len(shown), 100)], "the newest, in order"
        assert 1 <= len(shown) <= 6
        assert context.receipt.source("facts").outcome == "trimmed: max_tokens is 20"


@pytest.mark.asyncio
async def test_a_summary_can_be_expanded_and_corrected(tmp_path: Path) -> None:
    llm = ScriptedLLM(["Ada greets.", "Ada greets and leaves."], otherwise=lambda prompt: f"{prompt[0]} More.")
    async with engine_of(tmp_path, Summary(llm=llm)) as engine:
        memory = engine.session("one")
        await tell(memory, "Hello, I am Ada.")
        await tell(memory, "Goodbye.")
        block = await memory.block("summary")
        assert (block.text, block.version) == ("Ada greets and leaves.", 2)
        assert await block.expand(1) == "Ada greets."
        assert await block.expand(9) == ""
        async with memory.block("summary") as block:
            block.text = "Ada greets and stays."
        await tell(memory, "One more thing.")
        assert (await memory.block("summary")).text == "Ada greets and stays. More."
        assert llm.prompts[1] == ["Ada greets.", "Goodbye."]


@pytest.mark.asyncio
async def test_a_deterministic_section_stays_in_the_cached_prefix(tmp_path: Path) -> None:
    summary = Summary(llm=ScriptedLLM(otherwise="A summary."))
    async with engine_of(tmp_path, summary, Vectors(embed=FakeEmbedder(32)), insert_method="split") as engine:
        memory = engine.session("one")
        await tell(memory, "green tea", "black coffee")
        await memory.put({"role": "user", "content": "What do I drink?"})
        system, user = await memory.get("tea")
        assert "<summary>" in system.content
        assert "<vectors>" not in system.content
        assert "<vectors>" in user.content


@pytest.mark.asyncio
async def test_thousands_of_vectors(tmp_path: Path, soak: bool) -> None:
    """Twenty thousand with `--soak`."""
    batches = 10 if soak else 2
    definition = Vectors(embed=FakeEmbedder(16))
    async with engine_of(tmp_path, definition, token_flush_size=20_000) as engine:
        memory = engine.session("one")
        for batch in range(batches):
            texts = [f"item number {batch * 2_000 + n} is here" for n in range(2_000)]
            await memory.put_messages([{"role": "user", "content": text} for text in texts])
        await memory.flush(final=True)
        await memory.drain(120)
        block = await memory.block("vectors")
        assert await block.records.count() == 2_000 * batches
        assert sum([len(page) async for page in block.records.pages()]) == 2_000 * batches
        assert len(await block._aget(messages=[ChatMessage(role="user", content="item number 1234")])) == 3
        assert len(definition.cache[block.context.scope_key][1]) == 2_000 * batches
        [added] = await tell(memory, "a zeppelin over the lake")
        block = await memory.block("vectors")
        [first, *_] = await block._aget(messages=[ChatMessage(role="user", content="zeppelin lake")])
        assert first.text == "a zeppelin over the lake"
        await memory.delete([added])
        block = await memory.block("vectors")
        found = await block._aget(messages=[ChatMessage(role="user", content="zeppelin lake")])
        assert "zeppelin" not in repr(found), "also before the erasure has been carried out"
        assert len(definition.cache[block.context.scope_key][1]) == 2_000 * batches


@pytest.mark.asyncio
async def test_a_cache_follows_what_another_process_writes(tmp_path: Path) -> None:
    mine, theirs = Vectors(embed=FakeEmbedder(32)), Vectors(embed=FakeEmbedder(32))
    async with engine_of(tmp_path, mine) as one, engine_of(tmp_path, theirs) as two:
        here, there = one.session("s"), two.session("s")
        [tea] = await tell(here, "green tea")
        assert "green tea" in (await here.get("tea"))[0].content
        await tell(there, "black coffee")
        assert "black coffee" in (await here.get("coffee"))[0].content
        await there.delete([tea])
        assert "green tea" not in repr(await here.get("tea"))
        assert "green tea" not in repr(await there.get("tea"))


@pytest.mark.asyncio
async def test_a_section_of_messages_stands_before_history(tmp_path: Path) -> None:
    async with engine_of(tmp_path, Episodes()) as engine:
        memory = engine.session("one")
        await memory.put_messages([{"role": "user", "content": "old"}, {"role": "assistant", "content": "older answer"}])
        await memory.flush()
        await memory.flush(final=True)
        await memory.drain(30)
        await memory.put({"role": "user", "content": "new"})
        messages = await memory.get()
        assert [(message.role, message.content) for message in messages] == [
            ("user", "old"),
            ("assistant", "older answer"),
            ("user", "new"),
        ]
        await memory.put_messages(messages)
        assert [message.content for message in await memory.get_all()] == ["old", "older answer", "new"]


# -- the contract notices ----------------------------------------------------------------------------------------

SAID = ["I am Ada.", f"The code of my locker is {BlockContract.secret}.", "I like green tea.", "So does Logan."]


class Careless(BaseMemoryBlock[str]):
    """Each fault breaks one promise."""

    name: str = "careless"
    fault: str
    notes: list[str] = []
    shared: Any = Field(default_factory=dict, exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        texts = [message.content for message in messages]
        if self.fault == "counts attempts":
            texts.append(f"attempt {self.context.attempt}")
        if self.fault == "leaks":
            self.shared.setdefault("notes", []).extend(texts)
        if self.fault == "changes the definition":
            self.shared["definition"].notes.extend(texts)
        self.notes.extend(texts)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        if self.fault == "returns a number":
            return 5
        return "\n".join([*self.notes, *self.shared.get("notes", [])])

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        return content if self.fault == "frees nothing" else None


class Unforgetting(Careless):
    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Says that it forgot."""


FAULTS = {
    "counts attempts": "test_each_message_counts_exactly_once",
    "leaks": "test_two_sessions_are_apart",
    "changes the definition": "test_the_definition_is_not_changed",
    "returns a number": "test_its_content_is_valid",
    "frees nothing": "test_atruncate_frees_what_is_asked",
    "remembers": "test_what_is_erased_is_gone",
    "none": "",
}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_contract_notices(tmp_path: Path, fault: str) -> None:
    block = (Unforgetting if fault == "remembers" else Careless)(fault=fault, priority=1)
    block.shared["definition"] = block
    conversation = [ChatMessage(role="user", content=text) for text in SAID]
    for name in [FAULTS[fault]] if fault != "none" else [test for test in FAULTS.values() if test]:
        (tmp_path / name).mkdir()
        try:
            await getattr(BlockContract(), name)(block, conversation, tmp_path / name)
        except (AssertionError, BlockError):
            assert fault != "none", f"{name} fails without a fault"
        else:
            assert fault == "none", f"{name} overlooks a block that {fault}"


# -- on PostgreSQL -----------------------------------------------------------------------------------------------


class OnPostgreSQL(BlockContract):
    """The whole contract again, on the other database."""

    @pytest.fixture(autouse=True)
    def _databases(self, postgres: Any) -> None:
        self._make, self._uris = postgres.make, dict[tuple[Path, str], str]()

    def database_uri(self, folder: Path, name: str) -> str:
        if (folder, name) not in self._uris:
            with ThreadPoolExecutor(1) as elsewhere:  # it runs an event loop of its own
                self._uris[folder, name] = elsewhere.submit(self._make).result()
        return self._uris[folder, name]


class TestMentionCounterOnPostgreSQL(OnPostgreSQL, TestMentionCounter):
    pass


@pytest.mark.soak
class TestFactExtractionMemoryBlockOnPostgreSQL(OnPostgreSQL, TestFactExtractionMemoryBlock):
    pass


@pytest.mark.soak
class TestSummaryMemoryBlockOnPostgreSQL(OnPostgreSQL, TestSummaryMemoryBlock):
    pass


@pytest.mark.soak
class TestEntityMemoryBlockOnPostgreSQL(OnPostgreSQL, TestEntityMemoryBlock):
    pass


@pytest.mark.soak
class TestVectorMemoryBlockOnPostgreSQL(OnPostgreSQL, TestVectorMemoryBlock):
    pass


@pytest.mark.soak
class TestVectorsOfAUserOnPostgreSQL(OnPostgreSQL, TestVectorsOfAUser):
    pass


@pytest.mark.soak
class TestEpisodesOnPostgreSQL(OnPostgreSQL, TestEpisodes):
    pass
