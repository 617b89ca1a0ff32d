"""Leases, and the state and records of blocks. Plain functions over a `Connection`; callers bring the transaction."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ARRAY, Connection, Select, Text, bindparam, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from memory_engine.sql.postgresql import announce
from memory_engine.sql.tables import Tables, epoch_seconds
from memory_engine.store import Lease, Purpose, RecordRow, SessionRow, StateChange, StateInUse, StateRow

T = TypeVar("T")

BATCH = 500


def batches(values: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """The values in lists of at most `size`: databases bound the number of parameters."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def upsert(connection: Connection, table: Any) -> Any:
    """An INSERT that can say `ON CONFLICT`, of the connection's dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def after_prefix(prefix: str) -> str | None:
    """The smallest text greater than every text that starts with `prefix`; None when there is none."""
    for end in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[end])
        if code < 0x10FFFF:
            # The surrogates in between are no characters, no stored text has them.
            return prefix[:end] + chr(0xE000 if code == 0xD7FF else code + 1)
    return None


_REVOKED = "-"
"""Before the token of a lease that was taken from its owner, who can do nothing with it but give it back."""
_MOMENT = 10.0
"""Seconds of a lease that is given back in the transaction that takes it."""


class Leases:
    """The rights to deliver to, and to write, a (scope, block) pair, by the database's clock."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        leases, sessions = tables.leases, tables.sessions
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        mine = (
            leases.c.scope_key == bindparam("p_scope"),
            leases.c.block == bindparam("p_block"),
            leases.c.purpose == bindparam("p_purpose"),
            leases.c.token == bindparam("p_token"),
        )
        self._alive = (*mine, leases.c.until > epoch_seconds())
        self._session = select(sessions.c.pk).where(
            sessions.c.pk == bindparam("p_pk"), sessions.c.uid == bindparam("p_uid"), sessions.c.epoch == bindparam("p_epoch")
        )
        self._seen = select(leases.c.token).where(*self._alive)
        self._held = self._seen.with_for_update()
        self._renew = update(leases).where(*self._alive).values(until=epoch_seconds() + bindparam("p_seconds"))
        given_back = or_(leases.c.token == bindparam("p_token"), leases.c.token == _REVOKED + bindparam("p_token"))
        self._release = delete(leases).where(*mine[:-1], given_back)
        # For PostgreSQL alone.
        names = (func.unnest(bindparam(f"p_{name}", type_=ARRAY(Text))).label(name) for name in ("scopes", "blocks"))
        pairs = select(*names).subquery("pairs")
        name = func.hashtextextended(pairs.c.blocks + literal(f" {leases.name} ") + pairs.c.scopes, 0)
        self._lock_names = select(pairs.c.scopes.label("scope_key"), pairs.c.blocks.label("block")).where(
            func.pg_try_advisory_xact_lock(name)
        )
        same = (leases.c.scope_key == pairs.c.scopes, leases.c.block == pairs.c.blocks, leases.c.purpose == "deliver")
        self._there = select(leases.c.scope_key, leases.c.block).where(*same)
        self._lock_there = self._there.with_for_update(of=leases, skip_locked=True)

    def take(
        self, connection: Connection, scope_key: str, block: str, seconds: float, purpose: Purpose = "deliver"
    ) -> Lease | None:
        """The lease of a pair, unless it is alive in other hands."""
        leases = self._tables.leases
        token = secrets.token_hex(16)
        until = epoch_seconds() + seconds
        statement = upsert(connection, leases).values(
            scope_key=scope_key, block=block, purpose=purpose, owner=self._owner, token=token, until=until
        )
        statement = statement.on_conflict_do_update(
            index_elements=[leases.c.scope_key, leases.c.block, leases.c.purpose],
            set_={"owner": self._owner, "token": token, "until": until},
            where=leases.c.until <= epoch_seconds(),
        ).returning(leases.c.token)
        taken = connection.execute(statement).first()
        return Lease(scope_key, block, token, purpose) if taken is not None else None

    def take_free(self, connection: Connection, pairs: Sequence[tuple[str, str]], seconds: float) -> list[Lease]:
        """The leases to deliver to those of the pairs that nobody else holds, or is about to take or to give back."""
        if connection.dialect.name == "postgresql":
            pairs = self._unlocked(connection, pairs)
        if not pairs:
            return []
        leases = self._tables.leases
        tokens = {pair: secrets.token_hex(16) for pair in pairs}
        until = epoch_seconds() + seconds
        statement = upsert(connection, leases).values(
            [
                {
                    "scope_key": scope_key,
                    "block": block,
                    "purpose": "deliver",
                    "owner": self._owner,
                    "token": token,
                    "until": until,
                }
                for (scope_key, block), token in tokens.items()
            ]
        )
        statement = statement.on_conflict_do_update(
            index_elements=[leases.c.scope_key, leases.c.block, leases.c.purpose],
            set_={name: statement.excluded[name] for name in ("owner", "token", "until")},
            where=leases.c.until <= epoch_seconds(),
        ).returning(leases.c.scope_key, leases.c.block)
        taken = {(row.scope_key, row.block) for row in connection.execute(statement).all()}
        return [Lease(*pair, token) for pair, token in tokens.items() if pair in taken]

    def _unlocked(self, connection: Connection, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the pairs whose lease can be taken without waiting for another transaction.

        A lease that is not there yet has no row to lock: who takes one locks the name of the pair, until the transaction ends.
        """
        given = {"p_scopes": [scope for scope, _ in pairs], "p_blocks": [block for _, block in pairs]}
        mine = {(row.scope_key, row.block) for row in connection.execute(self._lock_names, given).all()}
        there = {(row.scope_key, row.block) for row in connection.execute(self._there, given).all()}
        locked = {(row.scope_key, row.block) for row in connection.execute(self._lock_there, given).all()}
        return [pair for pair in pairs if pair in mine and (pair in locked or pair not in there)]

    @contextmanager
    def writing(self, connection: Connection, lease: Lease, held: Lease | None = None) -> Iterator[None]:
        """Keep everybody from writing the pair by hand to the end of the transaction that commits a delivery to it.

        `held` is the lease to write, if it was taken before.

        :raises StateInUse: somebody is at it.
        """
        if held is not None:
            if not self.held(connection, held):
                raise StateInUse
            yield
            return
        mine = self.take(connection, lease.scope_key, lease.block, _MOMENT, "write")
        if mine is None:
            raise StateInUse
        yield
        self.release(connection, mine)

    def held(self, connection: Connection, lease: Lease, session: SessionRow | None = None, *, lock: bool = True) -> bool:
        """Whether the lease is alive and the session, if given, is still of the same uid and epoch.

        With `lock`, the lease stays so to the end of the transaction; readers do without.
        """
        if session is not None and not self.current(connection, session):
            return False
        return connection.execute(self._held if lock else self._seen, _parameters(lease)).first() is not None

    def current(self, connection: Connection, session: SessionRow) -> bool:
        """Whether the session still has that uid and epoch."""
        known = {"p_pk": session.pk, "p_uid": session.uid, "p_epoch": session.epoch}
        return connection.execute(self._session, known).first() is not None

    def renew(self, connection: Connection, lease: Lease, session: SessionRow | None, seconds: float) -> bool:
        if session is not None and not self.current(connection, session):
            return False
        return connection.execute(self._renew, {**_parameters(lease), "p_seconds": seconds}).rowcount == 1

    def release(self, connection: Connection, lease: Lease) -> None:
        connection.execute(self._release, _parameters(lease))

    def revoke(self, connection: Connection, condition: Any) -> None:
        """Take leases from their owners, but leave the pairs closed until they are given back, or would have ended.

        Whoever lost one may still be writing to an outside store; what erases that must come after it.
        """
        token = self._tables.leases.c.token
        again = update(self._tables.leases).where(condition, token.not_like(f"{_REVOKED}%"))
        connection.execute(again.values(token=_REVOKED + token))


def _parameters(lease: Lease) -> dict[str, str]:
    return {"p_scope": lease.scope_key, "p_block": lease.block, "p_purpose": lease.purpose, "p_token": lease.token}


class States:
    """Saved fields and records of (scope, block) pairs."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        states, records = tables.states, tables.records
        pair = (states.c.scope_key == bindparam("p_scope"), states.c.block == bindparam("p_block"))
        self._select = select(states.c.version, states.c.deleted_version, states.c.format, states.c.state).where(*pair)
        self._for_update = self._select.with_for_update()
        self._insert = insert(states)
        self._update = update(states).where(*pair)
        records_of_pair = (records.c.scope_key == bindparam("p_scope"), records.c.block == bindparam("p_block"))
        self._delete_record = delete(records).where(*records_of_pair, records.c.key == bindparam("p_key"))
        self._delete_records = delete(records).where(*records_of_pair)
        self._count = select(func.count()).select_from(records).where(*records_of_pair)
        self._read_records = lru_cache(maxsize=None)(self._records_statement)

    def read(self, connection: Connection, scope_key: str, block: str) -> StateRow:
        row = connection.execute(self._select, {"p_scope": scope_key, "p_block": block}).first()
        return StateRow() if row is None else StateRow(*row)

    def commit(
        self,
        connection: Connection,
        leases: Leases,
        lease: Lease,
        change: StateChange,
        *,
        version: int,
        writing: Lease | None = None,
    ) -> StateRow:
        """Write what a delivery made of the state of that version.

        :raises StateInUse: the state is another by now, or is being changed by hand.
        """
        if change.empty:
            return self.read(connection, lease.scope_key, lease.block)
        with leases.writing(connection, lease, writing):
            if self.read(connection, lease.scope_key, lease.block).version != version:
                raise StateInUse
            return self.apply(connection, lease.scope_key, lease.block, change)

    def apply(self, connection: Connection, scope_key: str, block: str, change: StateChange) -> StateRow:
        """Write a change under a new version; returns the state as it is then."""
        if change.empty:
            return self.read(connection, scope_key, block)
        pair = {"p_scope": scope_key, "p_block": block}
        lost = 0
        for key in change.delete:
            lost += connection.execute(self._delete_record, {**pair, "p_key": key}).rowcount
        state = self.touch(connection, scope_key, block, lost=lost > 0, state=change.state, format=change.format)
        if change.put:
            self._put(connection, scope_key, block, change.put, state.version)
        return state

    def commit_change(
        self, connection: Connection, leases: Leases, lease: Lease, change: StateChange, session: SessionRow | None
    ) -> StateRow | None:
        """A correction by hand; None when the lease is lost or the session was erased meanwhile."""
        if not leases.held(connection, lease, session):
            return None
        if change.absorb_again:
            self.absorb_again(connection, lease.scope_key, lease.block)
        return self.apply(connection, lease.scope_key, lease.block, change)

    def absorb_again(self, connection: Connection, scope_key: str, block: str) -> None:
        """Have a block absorb again what is stored of its scope's sessions; parked chunks are met again on the way."""
        cursors, parked = self._tables.cursors, self._tables.parked
        connection.execute(delete(parked).where(parked.c.scope_key == scope_key, parked.c.block == block))
        announce(connection, self._tables)
        values = {"cursor": cursors.c.start_seq, "attempts": 0, "next_attempt_at": 0.0, "last_error": None}
        connection.execute(update(cursors).where(cursors.c.scope_key == scope_key, cursors.c.block == block).values(values))

    def clear(self, connection: Connection, scope_key: str, block: str) -> None:
        """Drop fields and records of a pair, but keep its versions growing for those who cached what was there."""
        connection.execute(self._delete_records, {"p_scope": scope_key, "p_block": block})
        self.touch(connection, scope_key, block, lost=True, state="{}", format=1)

    def forget_records(self, connection: Connection, session_uid: str, seqs: Sequence[int] | None) -> None:
        """Delete the records that came from these messages of a session (None: from any), in all scopes."""
        records = self._tables.records
        touched: set[tuple[str, str]] = set()
        for batch in [None] if seqs is None else batches(seqs):
            condition = records.c.session_uid == session_uid
            if batch is not None:
                condition = condition & records.c.seq.in_(batch)
            pairs = connection.execute(select(records.c.scope_key, records.c.block).where(condition).distinct()).all()
            if pairs:
                touched.update((pair.scope_key, pair.block) for pair in pairs)
                connection.execute(delete(records).where(condition))
        for scope, block in sorted(touched):
            self.touch(connection, scope, block, lost=True)

    def records(
        self, connection: Connection, /, scope_key: str, block: str, *, keys: Sequence[str] | None, **options: Any
    ) -> list[RecordRow]:
        """Records by the options of `Store.read_records`, in the order of their keys."""
        prefix, limit = options.pop("prefix"), options.pop("limit")
        end = after_prefix(prefix)
        given: dict[str, Any] = {"changed_since": options["changed_since"], "after_key": options["after_key"], "limit": limit}
        given |= {"prefix": prefix or None, "prefix_end": end if prefix else None}
        given = {name: value for name, value in given.items() if value is not None}
        parameters = {f"p_{name}": value for name, value in given.items()} | {"p_scope": scope_key, "p_block": block}
        if keys is None:
            rows = connection.execute(self._read_records(frozenset(given)), parameters).all()
            return [RecordRow(*row) for row in rows]
        found: list[RecordRow] = []
        statement = self._read_records(frozenset(given) | {"keys"})
        for batch in batches(sorted(set(keys))):
            found += (RecordRow(*row) for row in connection.execute(statement, parameters | {"p_keys": batch}).all())
        return found if limit is None else found[:limit]

    def count(self, connection: Connection, scope_key: str, block: str) -> int:
        return int(connection.execute(self._count, {"p_scope": scope_key, "p_block": block}).scalar_one())

    def _records_statement(self, given: frozenset[str]) -> Select[Any]:
        columns = self._tables.records.c
        statement = select(columns.key, columns.data, columns.blob, columns.session_uid, columns.seq, columns.version).where(
            columns.scope_key == bindparam("p_scope"), columns.block == bindparam("p_block")
        )
        conditions: dict[str, Any] = {
            "keys": columns.key.in_(bindparam("p_keys", expanding=True)),
            "prefix": columns.key >= bindparam("p_prefix"),
            "prefix_end": columns.key < bindparam("p_prefix_end"),
            "after_key": columns.key > bindparam("p_after_key"),
            "changed_since": columns.version > bindparam("p_changed_since"),
        }
        statement = statement.where(*(conditions[name] for name in sorted(given & conditions.keys())))
        statement = statement.order_by(columns.key)
        return statement.limit(bindparam("p_limit")) if "limit" in given else statement

    def touch(
        self,
        connection: Connection,
        scope_key: str,
        block: str,
        *,
        lost: bool = False,
        state: str | None = None,
        format: int | None = None,  # noqa: A002 - the name of the column
    ) -> StateRow:
        """Give a pair its next version; `lost` says that records went."""
        pair = {"p_scope": scope_key, "p_block": block}
        before = connection.execute(self._for_update, pair).first()
        if before is None:
            # Versions start with the clock, so that a pair that was deleted and comes back never repeats one.
            version = int(connection.execute(select(epoch_seconds() * 1000)).scalar_one())
            row = StateRow(version, version, format or 1, state or "{}")
            values = {"version": row.version, "deleted_version": row.deleted_version, "format": row.format, "state": row.state}
            connection.execute(self._insert, {"scope_key": scope_key, "block": block, **values})
            return row
        version = before.version + 1
        deleted = version if lost else before.deleted_version
        if state is None:
            row = StateRow(version, deleted, before.format, before.state)
            connection.execute(self._update, {**pair, "version": version, "deleted_version": deleted})
        else:
            row = StateRow(version, deleted, format or 1, state)
            values = {"version": version, "deleted_version": deleted, "format": row.format, "state": state}
            connection.execute(self._update, {**pair, **values})
        return row

    def _put(self, connection: Connection, scope_key: str, block: str, rows: Sequence[RecordRow], version: int) -> None:
        records = self._tables.records
        statement = upsert(connection, records)
        changed = ("data", "blob", "session_uid", "seq", "version")
        statement = statement.on_conflict_do_update(
            index_elements=[records.c.scope_key, records.c.block, records.c.key],
            set_={name: statement.excluded[name] for name in changed},
        )
        connection.execute(
            statement,
            [
                {
                    "scope_key": scope_key,
                    "block": block,
                    "key": row.key,
                    "data": row.data,
                    "blob": row.blob,
                    "session_uid": row.session_uid,
                    "seq": row.seq,
                    "version": version,
                }
                for row in rows
            ],
        )
