from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_serializer, model_validator

from memory_engine import BaseMemoryBlock, ChatMessage, TextBlock
from memory_engine.binding import ScopeBinding, bind, can_forget, check_definition, state_fields
from memory_engine.block import BlockContext, Erased, Record, Records
from memory_engine.errors import BlockDefinitionError, BlockStateError
from memory_engine.store import RecordRow, StateRow, Store

pytestmark = pytest.mark.asyncio


class Plain(BaseMemoryBlock[str]):
    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None


class Notes(Plain):
    notes: list[str] = []
    seen: int = 0
    style: str = "short"
    client: Any = Field(default=None, exclude=True)
    _scratch: dict[str, int] = PrivateAttr(default_factory=dict)


class Rows:
    """A store that only has records."""

    def __init__(self, *rows: RecordRow) -> None:
        self.rows = {row.key: row for row in rows}

    async def read_records(
        self,
        scope_key: str,
        block: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        changed_since: int | None = None,
        after_key: str | None = None,
        limit: int | None = None,
    ) -> list[RecordRow]:
        found = [self.rows[key] for key in sorted(self.rows) if key.startswith(prefix)]
        found = [row for row in found if keys is None or row.key in keys]
        found = [row for row in found if changed_since is None or row.version > changed_since]
        return [row for row in found if after_key is None or row.key > after_key][:limit]

    async def count_records(self, scope_key: str, block: str) -> int:
        return len(self.rows)


def context(**changes: Any) -> BlockContext:
    given: dict[str, Any] = {
        "tenant": "",
        "user_id": None,
        "session_id": "s",
        "session_uid": "uid",
        "scope_key": "s:0::3:uid",
        "epoch": 0,
        "now": datetime(2025, 1, 1, tzinfo=UTC),
        "count": lambda text: len(text.split()),
    }
    return BlockContext(**{**given, **changes})


def bound(
    definition: BaseMemoryBlock[Any], saved: StateRow | None = None, *rows: RecordRow, writable: bool = True
) -> tuple[Any, ScopeBinding]:
    store = cast(Store, Rows(*rows))
    return bind(store, definition, context(), saved or StateRow(), session=None, writable=writable)


def saved(state: dict[str, Any], version: int = 1, form: int = 1) -> StateRow:
    return StateRow(version=version, format=form, state=json.dumps(state))


# -- definitions -------------------------------------------------------------------------------------------------


async def test_a_name_is_the_name_of_the_class_unless_given() -> None:
    assert Plain().name == "Plain"
    assert Notes(name="my-notes.2").name == "my-notes.2"


@pytest.mark.parametrize("name", ["2nd", "a b", "<a>", "ä", "a" * 65, "a\n", "-a"])
async def test_a_name_must_be_fit_for_a_tag(name: str) -> None:
    with pytest.raises(ValidationError, match="becomes a tag"):
        Plain(name=name)


@pytest.mark.parametrize("wrong", [{"priority": -1}, {"max_tokens": 0}, {"scope": "team"}, {"start": "later"}, {"typo": 1}])
async def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plain(**wrong)


async def test_a_block_must_implement_both_methods() -> None:
    class Half(BaseMemoryBlock[str]):
        async def _aput(self, messages: list[ChatMessage]) -> None:
            return None

    with pytest.raises(TypeError, match="_aget"):
        Half()  # type: ignore[abstract]


async def test_the_state_is_what_the_author_added_and_did_not_exclude() -> None:
    assert state_fields(Plain()) == ()
    assert state_fields(Notes()) == ("notes", "seen", "style")


async def test_a_definition_belongs_to_no_scope() -> None:
    block = Notes()
    assert not block.bound
    for use in (lambda: block.context, lambda: block.records, block.transaction):
        with pytest.raises(BlockStateError, match=r"await memory.block\('Notes'\)"):
            use()


async def test_only_definitions_are_accepted() -> None:
    with pytest.raises(BlockDefinitionError, match="instances of BaseMemoryBlock"):
        check_definition(Notes)
    copy, _ = bound(Notes())
    with pytest.raises(BlockDefinitionError, match="bound to a scope already"):
        check_definition(copy)
    definition = Notes()
    assert check_definition(definition) is definition


async def test_a_live_object_in_a_plain_field_is_refused() -> None:
    class Careless(Plain):
        client: Any = None

    for live in (threading.Lock(), lambda: 1, object(), Plain):
        with pytest.raises(BlockDefinitionError, match=r"field 'client' of block 'Careless'.*Field\(exclude=True\)"):
            check_definition(Careless(client=live))


async def test_a_model_in_a_plain_field_that_cannot_be_copied_is_refused() -> None:
    class Model(BaseModel):
        name: str = "model"
        _lock: Any = PrivateAttr(default_factory=threading.Lock)

    class Careless(Plain):
        llm: Model

    with pytest.raises(BlockDefinitionError, match=r"field 'llm' of block 'Careless' cannot be copied"):
        check_definition(Careless(llm=Model()))

    class Careful(Plain):
        llm: Model = Field(exclude=True)

    model = Model()
    copy, _ = bound(check_definition(Careful(llm=model)))
    assert copy.llm is model


async def test_a_private_container_that_cannot_be_copied_is_refused() -> None:
    class Careless(Plain):
        _clients: dict[str, Any] = PrivateAttr(default_factory=lambda: {"a": threading.Lock()})

    with pytest.raises(BlockDefinitionError, match="private attribute '_clients'"):
        check_definition(Careless())


# -- bound copies ------------------------------------------------------------------------------------------------


async def test_a_bound_copy_shares_nothing_but_what_is_excluded() -> None:
    client = object()
    definition = Notes(notes=["a"], client=client)
    one, _ = bound(definition)
    two, _ = bound(definition)
    one.notes.append("b")
    one.seen = 5
    one._scratch["x"] = 1
    assert definition.notes == two.notes == ["a"]
    assert definition.seen == two.seen == 0
    assert definition._scratch == two._scratch == {}
    assert one.client is two.client is client
    assert one.bound
    assert not definition.bound


async def test_saved_fields_are_restored_and_the_others_follow_the_definition() -> None:
    copy, _ = bound(Notes(style="long"), saved({"notes": ["x"], "seen": 7}))
    assert (copy.notes, copy.seen, copy.style) == (["x"], 7, "long")


async def test_saved_fields_that_the_class_lost_are_ignored() -> None:
    copy, binding = bound(Notes(), saved({"old": 1, "client": "no", "priority": 9, "seen": 2}))
    assert (copy.seen, copy.client, copy.priority) == (2, None, 0)
    copy.seen = 3
    assert json.loads(binding.change().state or "") == {"seen": 3}


async def test_only_changed_fields_are_saved_and_then_always() -> None:
    definition = Notes()
    copy, binding = bound(definition)
    assert binding.change().empty
    copy.seen = 1
    first = binding.change()
    assert json.loads(first.state or "") == {"seen": 1}
    # Back to the definition's value: it was saved once, so the session's value counts, whatever the definition says.
    copy, binding = bound(Notes(seen=9), saved({"seen": 1}))
    copy.seen = 9
    assert json.loads(binding.change().state or "") == {"seen": 9}
    copy, binding = bound(Notes(seen=9), saved({"seen": 1}))
    assert binding.change().state is None


async def test_state_comes_back_from_json_as_it_was() -> None:
    class Mood(StrEnum):
        GOOD = "good"

    class Person(BaseModel):
        name: str
        born: datetime

    class Rich(Plain):
        people: dict[str, Person] = {}
        tags: set[str] = set()
        pair: tuple[int, str] = (0, "")
        price: Decimal = Decimal(0)
        mood: Mood | None = None
        by_number: dict[int, float] = {}
        raw: bytes = b""
        last: ChatMessage | None = None
        anything: Any = None

    definition = Rich()
    copy, binding = bound(definition)
    copy.people["ada"] = Person(name="Ada", born=datetime(1815, 12, 10, tzinfo=UTC))
    copy.tags |= {"a", "b"}
    copy.pair = (3, "x")
    copy.price = Decimal("1.10")
    copy.mood = Mood.GOOD
    copy.by_number[3] = 0.1
    copy.raw = b"abc"
    copy.last = ChatMessage(role="user", content="hi", metadata={"k": [1]})
    copy.anything = {"a": [1, None]}
    again, _ = bound(definition, StateRow(1, 0, 1, binding.change().state or ""))
    for name in state_fields(definition):
        assert getattr(again, name) == getattr(copy, name), name
        assert type(getattr(again, name)) is type(getattr(copy, name)), name


async def test_fields_that_are_only_valid_together_are_restored() -> None:
    class Range(Plain):
        low: int = 0
        high: int = 10
        names: list[str] = []
        counts: list[int] = []
        client: Any = Field(default=None, exclude=True)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.low > self.high or len(self.names) != len(self.counts):
                raise ValueError("low <= high, and a count for each name")
            return self

    definition = Range(client=object())
    copy, binding = bound(definition)
    copy.low, copy.high = 20, 30
    copy.names.append("a")
    copy.counts.append(1)
    again, _ = bound(definition, StateRow(1, 0, 1, binding.change().state or ""))
    assert (again.low, again.high, again.names, again.counts) == (20, 30, ["a"], [1])
    assert again.client is definition.client
    again.names.append("b")
    assert definition.names == []


async def test_a_block_with_its_own_constructor_is_restored_without_it() -> None:
    class Built(Plain):
        seen: int = 0
        client: Any = Field(default=None, exclude=True)

        def __init__(self, client: Any, **fields: Any) -> None:
            super().__init__(client=client, **fields)

    copy, _ = bound(Built(object()), saved({"seen": 3}))
    assert copy.seen == 3


async def test_what_does_not_come_back_from_json_is_refused() -> None:
    class Rounded(Plain):
        value: float = 0.0

        @field_serializer("value")
        def _round(self, value: float) -> int:
            return int(value * 2)

    copy, binding = bound(Rounded())
    copy.value = 1.5
    with pytest.raises(BlockStateError, match="field 'value' of block 'Rounded' does not come back from JSON"):
        binding.change()


async def test_a_value_of_the_wrong_type_is_refused() -> None:
    copy, binding = bound(Notes())
    copy.seen = "three"
    with pytest.raises(BlockStateError, match="field 'seen' of block 'Notes' cannot be saved"):
        binding.change()
    copy, binding = bound(Notes())
    copy.notes = [threading.Lock()]
    with pytest.raises(BlockStateError, match="field 'notes'"):
        binding.change()
    copy, binding = bound(Notes())
    copy.notes = copy
    with pytest.raises(BlockStateError, match="field 'notes'"):
        binding.change()


async def test_a_changed_private_attribute_is_refused() -> None:
    class Hidden(Plain):
        _count: int = 0
        _names: list[str] = PrivateAttr(default_factory=list)
        _client: Any = PrivateAttr(default=None)

    copy, binding = bound(Hidden())
    copy._count += 1
    with pytest.raises(BlockStateError, match="private attribute '_count' of block 'Hidden' was changed"):
        binding.change()
    copy, binding = bound(Hidden())
    copy._names.append("x")
    with pytest.raises(BlockStateError, match="'_names'"):
        binding.change()
    copy, binding = bound(Hidden())
    copy._client = object()
    with pytest.raises(BlockStateError, match="'_client'"):
        binding.change()
    copy, binding = bound(Hidden())
    assert binding.change().empty


# -- versions of state -------------------------------------------------------------------------------------------


class Second(Plain):
    state_version = 2
    total: int = 0

    @classmethod
    def upgrade_state(cls, state: dict[str, Any], from_version: int) -> dict[str, Any]:
        assert from_version == 1
        return {"total": state["count"] * 10}


async def test_older_state_is_upgraded_and_saved_under_the_new_version() -> None:
    copy, binding = bound(Second(), saved({"count": 4}))
    assert copy.total == 40
    change = binding.change()
    assert (change.format, json.loads(change.state or "")) == (2, {"total": 40})
    copy, binding = bound(Second(), saved({"total": 41}, form=2))
    assert copy.total == 41
    assert binding.change().state is None


async def test_state_of_a_newer_version_is_refused() -> None:
    with pytest.raises(BlockStateError, match="saved by its version 3, this is 2; run the newer code"):
        bound(Second(), saved({"total": 1}, form=3))


async def test_a_failing_upgrade_says_so() -> None:
    with pytest.raises(BlockStateError, match="upgrade_state of block 'Second' failed on state of version 1: KeyError"):
        bound(Second(), saved({"other": 4}))

    class Forgetful(Second):
        @classmethod
        def upgrade_state(cls, state: dict[str, Any], from_version: int) -> dict[str, Any]:
            return None  # type: ignore[return-value]

    with pytest.raises(BlockStateError, match="returned NoneType"):
        bound(Forgetful(), saved({"other": 4}))


async def test_state_that_no_longer_fits_says_so() -> None:
    with pytest.raises(BlockStateError, match=r"(?s)saved fields \['seen'\].*upgrade_state"):
        bound(Notes(), saved({"seen": "many"}))


# -- records -----------------------------------------------------------------------------------------------------


def row(key: str, data: Any = None, version: int = 1) -> RecordRow:
    return RecordRow(key, json.dumps(data), None, "uid", 0, version)


async def test_records_are_read_with_what_this_call_wrote() -> None:
    copy, binding = bound(Plain(), None, row("a", 1), row("b", 2), row("c", 3))
    records = copy.records
    records.put("b", {"new": True}, seq=5, blob=bytearray(b"x"))
    records.put("d", 4)
    records.delete("a")
    records.delete("never")
    assert await records.get("a") is None
    assert await records.get("never") is None
    assert await records.get("nothing") is None
    assert await records.get("b") == Record("b", {"new": True}, b"x", "uid", 5)
    assert [record.key for record in await records.list()] == ["b", "c", "d"]
    assert await records.count() == 3
    change = binding.change()
    assert [(r.key, json.loads(r.data), r.blob, r.session_uid, r.seq) for r in change.put] == [
        ("b", {"new": True}, b"x", "uid", 5),
        ("d", 4, None, "uid", None),
    ]
    assert change.delete == ("a", "never")


async def test_records_by_prefix_page_and_version() -> None:
    copy, _ = bound(Plain(), None, *(row(f"p{n}", n, version=n) for n in range(5)), row("q", 9, version=9))
    records = copy.records
    assert [r.key for r in await records.list("p")] == ["p0", "p1", "p2", "p3", "p4"]
    assert [r.key for r in await records.list("p", after_key="p1", limit=2)] == ["p2", "p3"]
    assert [r.key for r in await records.list(changed_since=3)] == ["p4", "q"]
    assert [r.key for r in await records.list(limit=0)] == []
    assert [[r.key for r in page] async for page in records.pages("p", size=2)] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    records.put("p9")
    assert [r.key for r in await records.list(changed_since=3)] == ["p4", "p9", "q"]


_KEYS = st.text("ab", min_size=1, max_size=3)


@settings(max_examples=100)
@given(
    stored=st.sets(_KEYS),
    written=st.dictionaries(_KEYS, st.booleans()),
    prefix=st.text("ab", max_size=1),
    after=st.none() | _KEYS,
    limit=st.none() | st.integers(0, 4),
)
async def test_the_overlay_equals_what_will_be_stored(
    stored: set[str], written: dict[str, bool], prefix: str, after: str | None, limit: int | None
) -> None:
    copy, _ = bound(Plain(), None, *(row(key) for key in stored))
    later = set(stored)
    for key, keep in written.items():
        if keep:
            copy.records.put(key)
            later.add(key)
        else:
            copy.records.delete(key)
            later.discard(key)
    expected = [key for key in sorted(later) if key.startswith(prefix) and (after is None or key > after)]
    found = await copy.records.list(prefix, after_key=after, limit=limit)
    assert [record.key for record in found] == expected[:limit]
    assert await copy.records.count() == len(later)
    paged = [record.key async for page in copy.records.pages(size=2) for record in page]
    assert paged == sorted(later)


async def test_records_hold_json_and_nothing_else() -> None:
    copy, _ = bound(Plain())
    copy.records.put("a", (1, 2))
    record = await copy.records.get("a")
    assert record is not None
    assert record.data == [1, 2], "what this call reads is what later ones will"
    data: list[int] = [1]
    copy.records.put("a", data)
    data.append(2)
    record = await copy.records.get("a")
    assert record is not None
    assert record.data == [1], "changing the object afterwards changes nothing"
    for wrong in ({1, 2}, object(), float("nan"), b"x"):
        with pytest.raises(BlockStateError, match="not JSON"):
            copy.records.put("b", wrong)
    for blob in (5, "text", [1]):
        with pytest.raises(BlockStateError, match="blob of record 'b'"):
            copy.records.put("b", blob=cast(bytes, blob))
    for seq in (-1, True, "3", 2**63):
        with pytest.raises(BlockStateError, match="seq of record 'b'"):
            copy.records.put("b", seq=cast(int, seq))
    assert await copy.records.get("b") is None


@pytest.mark.parametrize("key", ["", "a\x00", "x" * 513, 5, None, "\ud800"])
async def test_a_key_is_text_that_every_database_keeps(key: Any) -> None:
    copy, _ = bound(Plain())
    for write in (copy.records.put, copy.records.delete):
        with pytest.raises(BlockStateError, match="key is a text"):
            write(key)


async def test_records_cannot_be_written_while_reading() -> None:
    copy, _ = bound(Plain(), None, row("a"), writable=False)
    for write in (copy.records.put, copy.records.delete):
        with pytest.raises(BlockStateError, match="can only be written"):
            write("a")
    assert [record.key for record in await copy.records.list()] == ["a"]


async def test_a_record_comes_from_the_session_at_work_unless_it_says_otherwise() -> None:
    records = Records(cast(Any, None), None, True)
    records.put("a")
    assert records.written["a"] == Record("a")
    records = Records(cast(Any, None), "mine", True)
    records.put("a", seq=3)
    records.put("b", seq=3, session_uid="theirs")
    assert records.written == {"a": Record("a", None, None, "mine", 3), "b": Record("b", None, None, "theirs", 3)}


# -- the rest ----------------------------------------------------------------------------------------------------


async def test_the_default_atruncate_counts_with_the_memorys_tokenizer() -> None:
    copy, _ = bound(Plain())
    assert await copy.atruncate("one two three", 1) == "one two"
    assert await copy.atruncate("one", 1) is None
    items = [TextBlock(text="a a", value=0.1), TextBlock(text="b b", value=0.2)]
    assert await copy.atruncate(items, 1) == items[1:]


async def test_which_blocks_can_forget() -> None:
    class Forgetting(Plain):
        async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
            return None

    class Child(Forgetting):
        pass

    assert not can_forget(Plain())
    assert can_forget(Forgetting())
    assert can_forget(Child())


async def test_erased_says_what_it_covers() -> None:
    some = Erased("uid", (1, 2))
    assert some.covers("uid", 1)
    assert not some.covers("uid", 3)
    assert not some.covers("uid", None)
    assert not some.covers("other", 1)
    assert Erased("uid", None).covers("uid", None)
    assert not Erased("uid", None).covers("other", 1)
    assert Erased(None, None).covers("any", None)


async def test_inside_a_delivery_a_transaction_joins_it() -> None:
    copy, binding = bound(Notes())
    async with copy.transaction():
        copy.seen += 1
        copy.records.put("a")
    assert json.loads(binding.change().state or "") == {"seen": 1}
    assert [r.key for r in binding.change().put] == ["a"]
