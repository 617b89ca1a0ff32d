"""An import writes to nothing but its target, and one bad value, address or key press does not end it with a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.__main__ import main
from memory_engine.importers.langchain_file import elements

Rows = Iterable[tuple[object, object]]


def human(content: str) -> str:
    return json.dumps({"type": "human", "data": {"content": content, "type": "human"}})


def source(path: Path, rows: Rows | None = None) -> Path:
    """A table of LangChain's with these rows of session and message."""
    rows = [("s", human("one")), ("s", human("two"))] if rows is None else rows
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE message_store (id INTEGER PRIMARY KEY, session_id TEXT, message TEXT)")
        connection.executemany("INSERT INTO message_store (session_id, message) VALUES (?, ?)", rows)
        connection.commit()
    return path


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def run(path: Path | str, *arguments: str, kind: str = "langchain-sql") -> int:
    return main(["import", "--from", kind, str(path), *arguments])


def texts(uri: str, session: str) -> list[str]:
    async def read() -> list[ChatMessage]:
        async with Memory.from_defaults(session, async_database_uri=uri) as memory:
            return await memory.get_all()

    return [message.content for message in asyncio.run(read())]


@pytest.fixture
def ours(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"


# -- the source is not the target ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to",
    [
        "sqlite+aiosqlite:///{tmp}/chat%20history.db",
        "sqlite:///{tmp}/sub/../chat history.db",
        "sqlite+aiosqlite:///file:{tmp}/chat%20history.db?uri=true",
        "sqlite+aiosqlite:///file:///{tmp}/chat%20history.db?uri=true",
        "sqlite+aiosqlite:///{tmp}/link.db",
        "sqlite+aiosqlite:///{tmp}/hard.db",
        "sqlite+aiosqlite:///chat history.db",
        "sqlite+aiosqlite:///{tmp}/chat history.db-wal",
    ],
)
@pytest.mark.parametrize("written", ["{tmp}/chat history.db", "sqlite:///link.db", "sqlite:///file:chat%20history.db?uri=true"])
def test_the_source_is_never_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], written: str, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    path = source(tmp_path / "chat history.db")
    (tmp_path / "link.db").symlink_to(path)
    os.link(path, tmp_path / "hard.db")
    before, names = path.read_bytes(), sorted(tmp_path.iterdir())
    to = to.replace("{tmp}", str(tmp_path))
    if "file:" not in to:
        to = to.replace("%20", " ")
    for apply in ([], ["--apply"]):
        assert run(written.replace("{tmp}", str(tmp_path)), "--to", to, *apply) == 1
        assert "--to is the source" in capsys.readouterr().err
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == names


def test_a_file_of_a_folder_is_not_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(f"[{human('x')}]")
    (tmp_path / "empty.json").touch()
    for place in (tmp_path, tmp_path / "empty.json"):
        to = f"sqlite+aiosqlite:///{tmp_path / 'empty.json'}"
        assert run(place, "--to", to, "--apply", "--skip", kind="langchain-file") == 1
        assert "--to is the source" in capsys.readouterr().err
    assert (tmp_path / "empty.json").read_bytes() == b""
    beside = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    assert run(tmp_path / "a.json", "--to", beside, "--apply", kind="langchain-file") == 0


def test_another_table_of_one_postgresql_database_is_left_as_it_is(
    postgres_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = text("SELECT xmin::text, ctid::text, id, session_id, message FROM message_store ORDER BY id")

    async def write() -> list[Any]:
        engine = create_async_engine(postgres_uri)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE message_store (id SERIAL PRIMARY KEY, session_id TEXT, message TEXT)"))
            for number in range(5):
                values = {"message": human(f"m{number}")}
                await connection.execute(text("INSERT INTO message_store (session_id, message) VALUES ('s', :message)"), values)
        await engine.dispose()
        return await read()

    async def read() -> list[Any]:
        engine = create_async_engine(postgres_uri)
        async with engine.connect() as connection:
            rows = list((await connection.execute(state)).all())
        await engine.dispose()
        return rows

    before = asyncio.run(write())
    short = postgres_uri.replace("postgresql+asyncpg://", "postgres://")
    assert run(short, "--to", postgres_uri, "--apply") == 0
    assert texts(postgres_uri, "s") == [f"m{number}" for number in range(5)]
    assert asyncio.run(read()) == before
    # A table with the name of one of ours would be written to, were it there.
    capsys.readouterr()
    assert run(short, "--to", postgres_uri, "--apply", "--table", "memory_messages") == 1
    assert "--table-prefix" in capsys.readouterr().err


# -- addresses and interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("postgres://u:secret@127.0.0.1:1/d", "The source cannot be read"),
        ("postgresql://u:secret@127.0.0.1:1/d?sslmode=never", "The source cannot be read"),
        ("mysql://u:secret@127.0.0.1:1/d", "driver"),
        ("mysql+nothing://u:secret@127.0.0.1:1/d", "driver"),
        ("oracle://u:secret@127.0.0.1:1/d", "driver"),
        ("sqlite+pysqlite:///missing.db", "There is no file"),
        ("postgresql://u:secret@127.0.0.1:port/d", "neither"),
        ("sqlite://", "There is no file"),
        ("", "There is no file"),
    ],
)
def test_wrong_addresses_are_errors_of_one_line(capsys: pytest.CaptureFixture[str], address: str, told: str) -> None:
    assert run(address) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and "secret" not in error


@pytest.mark.parametrize("apply", [True, False])
def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, ours: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], apply: bool
) -> None:
    path = source(tmp_path / "chat.db")
    place = "memory_engine.memory.Memory.put_messages" if apply else "memory_engine.importers.run._plan"

    async def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        assert run(path, "--to", ours, *["--apply"] * apply) == 130
    assert ("the same command again" if apply else "Nothing was written") in capsys.readouterr().err
    assert run(path, "--to", ours, "--apply") == 0
    assert texts(ours, "s") == ["one", "two"]


# -- one bad value is one row's problem ----------------------------------------------------------------------

BAD = [
    ("langchain-sql", {"type": "ai", "data": {"content": "", "tool_calls": 5}}),
    ("langchain-sql", {"type": "ai", "data": {"content": "x", "usage_metadata": {"input_tokens": "many"}}}),
    ("langchain-sql", {"type": "ai", "data": {"content": "x", "additional_kwargs": 5}}),
    ("langchain-sql", {"type": ["human"], "data": {"content": "x"}}),
    ("langchain-sql", {"type": "human", "data": {"content": "x", "additional_kwargs": {"number": float("nan")}}}),
    ("llama-index", {"role": ["user"], "blocks": []}),
    ("llama-index", {"role": "assistant", "additional_kwargs": {"tool_calls": [{"id": ["c"], "function": {}}]}, "blocks": 5}),
    ("openai-sessions", {"role": "user", "content": "\ud800"}),
    ("openai-sessions", ["no", "object"]),
]
GOOD = {
    "langchain-sql": {"type": "human", "data": {"content": "good"}},
    "llama-index": {"role": "user", "blocks": [{"block_type": "text", "text": "good"}]},
    "openai-sessions": {"role": "user", "content": "good"},
}
TABLES = {
    "langchain-sql": "message_store (id INTEGER PRIMARY KEY, session_id TEXT, message TEXT)",
    "llama-index": "llama_index_memory (id INTEGER PRIMARY KEY, key TEXT, data TEXT, timestamp INTEGER, status TEXT)",
    "openai-sessions": "agent_messages (id INTEGER PRIMARY KEY, session_id TEXT, message_data TEXT, created_at TEXT)",
}


def table_of(kind: str, path: Path, rows: Rows) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {TABLES[kind]}")
        name, columns = TABLES[kind].split(" ", 1)
        names = [column.split()[0] for column in columns.strip("()").split(", ")]
        for number, row in enumerate(rows, start=1):
            values = (number, *row, *(0, "active")[: len(names) - 3])
            connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values))})", values)
        connection.commit()
    return path


@pytest.mark.parametrize(("kind", "value"), BAD)
def test_a_bad_value_is_the_problem_of_its_row(
    tmp_path: Path, ours: str, capsys: pytest.CaptureFixture[str], kind: str, value: object
) -> None:
    good = json.dumps(GOOD[kind])
    path = table_of(kind, tmp_path / "source.db", [("bad", good), ("bad", json.dumps(value)), ("bad", good), ("fine", good)])
    assert run(path, "--to", ours, "--apply", kind=kind) == 1
    assert "! row 2: " in capsys.readouterr().out
    assert texts(ours, "fine") == ["good"] and texts(ours, "bad") == []
    assert run(path, "--to", ours, "--apply", "--skip", kind=kind) == 0
    assert texts(ours, "bad") == ["good", "good"]


@pytest.mark.parametrize("kind", TABLES)
def test_a_cell_that_is_not_utf_8_is_the_problem_of_its_row(
    tmp_path: Path, ours: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good = json.dumps(GOOD[kind])
    path = table_of(kind, tmp_path / "source.db", [("bad", good), ("bad", good), ("fine", good), ("gone", good)])
    name, data = TABLES[kind].split(" ")[0], ("data" if kind == "llama-index" else "message")
    column = {"openai-sessions": "message_data"}.get(kind, data)
    change(path, f"UPDATE {name} SET {column} = CAST(? AS TEXT) WHERE id = 2", good.encode().replace(b"good", b"g\xff"))
    session = TABLES[kind].split(", ")[1].split()[0]
    change(path, f"UPDATE {name} SET {session} = CAST(x'67ff' AS TEXT) WHERE id = 4")
    assert run(path, "--to", ours, "--apply", kind=kind) == 1
    shown = capsys.readouterr().out
    assert "! row 2: " in shown and "! none of it: " in shown
    assert texts(ours, "fine") == ["good"] and texts(ours, "bad") == []
    assert run(path, "--to", ours, "--apply", "--skip", kind=kind) == 0
    assert texts(ours, "bad") == ["good"]


def test_a_row_whose_name_is_not_utf_8_is_read(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "history.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE messages (id TEXT PRIMARY KEY, session_scope, role, content, name, created_at)")
        connection.execute("CREATE TABLE history (id TEXT PRIMARY KEY)")
        for name in ("a", b"\xff", "c"):
            said = f"said by {name!r}"
            connection.execute(
                "INSERT INTO messages VALUES (CAST(? AS TEXT), 'user_id=u', 'user', ?, NULL, NULL)", (name, said)
            )
        connection.commit()
    run(path, "--to", ours, "--apply", kind="mem0-history")
    assert texts(ours, "user_id=u") == ["said by 'a'", "said by b'\\xff'", "said by 'c'"]


def test_a_file_that_cannot_be_read_is_the_problem_of_its_session(
    tmp_path: Path, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "histories"
    folder.mkdir()
    (folder / "a-good.json").write_text(f"[{human('ü')}]")
    (folder / "b-latin.json").write_bytes(f'[{human("x")}, {human("")[:-3]}é"}}}}]'.encode("latin-1"))
    (folder / "c-garbage.json").write_text(f"[{human('x')}] garbage")
    (folder / "d-mark.json").write_text(f"\ufeff[{human('x')}]")
    (folder / "e-good.json").write_text(f" [{human('y')}]\n ")
    assert run(folder, "--to", ours, "--apply", kind="langchain-file") == 1
    shown = capsys.readouterr().out
    assert "0xe9" in shown and "'garbage' behind its end" in shown and "does not begin with a JSON list" in shown
    assert (texts(ours, "a-good"), texts(ours, "e-good")) == (["ü"], ["y"])
    assert texts(ours, "b-latin") == texts(ours, "c-garbage") == []
    assert run(folder, "--encoding", "hex", kind="langchain-file") == 1
    assert "--encoding" in capsys.readouterr().err


def test_a_session_that_is_no_list_does_not_keep_others_away(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "store.json"
    path.write_text(json.dumps({"store": {"bad": {"a": 1}, "fine": [GOOD["llama-index"]]}}))
    assert run(path, "--to", ours, "--apply", kind="llama-index") == 1
    assert texts(ours, "fine") == ["good"]


# -- repairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("append", [(), ("--append",)])
def test_a_row_that_was_repaired_is_not_put_behind_the_others(
    tmp_path: Path, ours: str, capsys: pytest.CaptureFixture[str], append: tuple[str, ...]
) -> None:
    path = source(tmp_path / "chat.db", [("s", human("one")), ("s", "broken"), ("s", human("three")), ("t", human("x"))])
    assert run(path, "--to", ours, "--apply", "--skip") == 0
    change(path, "UPDATE message_store SET message = ? WHERE message = 'broken'", human("two"))
    for _ in range(2):
        capsys.readouterr()
        assert run(path, "--to", ours, "--apply", *append) == 1
        shown = capsys.readouterr().out
        assert "(row 2)" in shown and "delete_session" in shown and "--append" not in shown
        assert texts(ours, "s") == ["one", "three"]

    async def forget() -> None:
        async with MemoryEngine(async_database_uri=ours) as engine:
            await engine.delete_session("s")

    asyncio.run(forget())
    assert run(path, "--to", ours, "--apply") == 0
    assert texts(ours, "s") == ["one", "two", "three"]


def test_a_last_row_that_was_repaired_is_added(tmp_path: Path, ours: str) -> None:
    path = source(tmp_path / "chat.db", [("s", human("one")), ("s", "broken")])
    assert run(path, "--to", ours, "--apply", "--skip") == 0
    change(path, "UPDATE message_store SET message = ? WHERE message = 'broken'", human("two"))
    assert run(path, "--to", ours, "--apply") == 0
    assert texts(ours, "s") == ["one", "two"]


# -- long elements -------------------------------------------------------------------------------------------


class Counted(str):
    """A text that counts what is copied of it."""

    __slots__ = ()
    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            Counted.copied += len(found)
            return Counted(found)
        return found

    def lstrip(self, letters: str | None = None, /) -> Counted:
        found = super().lstrip(letters)
        Counted.copied += len(found) if len(found) < len(self) else 0
        return Counted(found)

    def __add__(self, other: str) -> Counted:
        return Counted(super().__add__(other))


class Pieces:
    """A file whose texts count what is copied of them."""

    def __init__(self, text: str) -> None:
        self._file = StringIO(text)

    def read(self, size: int) -> str:
        return Counted(self._file.read(size))


def test_a_long_element_is_not_copied_for_each_of_those_behind_it() -> None:
    values = [{"content": "x" * 2_000_000}, *({"content": f"m{number}"} for number in range(20_000))]
    written = json.dumps(values)
    Counted.copied = 0
    assert list(elements(cast(TextIO, Pieces(written)))) == values
    assert Counted.copied < 4 * len(written)
