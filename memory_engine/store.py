"""What the engine asks of a database, as a protocol, and the frozen values that travel across it.

Rules that every store keeps (`memory_engine.testing.StoreContract` proves them):

- A method that writes is one transaction: it happens wholly or not at all, also when its caller is cancelled.
- Order is `seq`, given inside the transaction that inserts, one after the other for each session, never reused.
- Leases use the database's clock; `created_at` and `updated_at` are the caller's, in microseconds since 1970 UTC.
- Text ids are bound parameters, compared exactly (case and spaces count).
- Driver errors leave as children of `StoreError`, with the driver's error as `__cause__`.
- A session is addressed by `(pk, uid)`: a deleted session's handle can never touch the one created after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

Scope = Literal["session", "user", "global"]
Start = Literal["beginning", "now"]


def scope_key(scope: Scope, *, tenant: str, user_id: str | None, session_uid: str) -> str:
    """The key under which a block's state lives; length prefixes keep `("a", "b:c")` apart from `("a:b", "c")`."""
    if scope == "global":
        return f"g:{len(tenant)}:{tenant}"
    owner = session_uid if scope == "session" else user_id
    if owner is None:
        raise ValueError("a user scope needs a user_id")
    return f"{scope[0]}:{len(tenant)}:{tenant}:{len(owner)}:{owner}"


@dataclass(frozen=True, slots=True)
class BlockTarget:
    """A block of a session. With `accepts` it receives what is flushed and has a cursor; others only have state."""

    name: str
    scope: Scope
    start: Start = "beginning"
    accepts: bool = True


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Which session a handle means, and what to note when its first message creates it."""

    tenant: str
    session_id: str
    user_id: str | None
    tokenizer: str
    blocks: tuple[BlockTarget, ...] = ()
    metadata: str = "{}"

    @property
    def receivers(self) -> tuple[BlockTarget, ...]:
        """The blocks that flushed messages are delivered to."""
        return tuple(block for block in self.blocks if block.accepts)


class SessionRow(NamedTuple):
    """A session as stored. `revision` changes whenever messages change other than by appending and flushing.

    A named tuple like the other values that every put makes: a frozen dataclass of as many fields takes six times as long.
    """

    pk: int
    uid: str
    epoch: int
    tenant: str
    user_id: str | None
    session_id: str
    next_seq: int
    horizon: int
    turn_seq: int | None
    active_tokens: int
    active_turns: int
    pinned_tokens: int
    version: int
    revision: int
    tokenizer: str
    created_at: int
    updated_at: int
    metadata: str = "{}"


class Draft(NamedTuple):
    """A message on its way in: encoded and counted before the transaction."""

    message_id: str
    role: str
    tokens: int
    data: str
    created_at: int
    pinned: bool = False
    calls: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    given_id: bool = False
    """The caller chose the id: a stored message with the same id and data makes this one a no-op."""
    partial: bool = False
    """A shortened view copy: it stands for the stored message of that id, whatever its data."""


class MessageRow(NamedTuple):
    """A message as stored. `calls` and `results` are the ids of its tool calls and of the calls it answers.

    A named tuple, because a window of 300 of them is built three times as fast as of frozen dataclasses.
    """

    seq: int
    message_id: str
    role: str
    tokens: int
    data: str
    created_at: int
    pinned: bool = False
    calls: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When messages leave the FIFO: over `threshold` tokens or `max_turns` turns, at least `flush_size` tokens a time."""

    threshold: int
    flush_size: int
    max_turns: int | None = None


@dataclass(frozen=True, slots=True)
class Flush:
    """Messages with `start_seq <= seq < end_seq` were archived together; `tokens` counts those of them."""

    start_seq: int
    end_seq: int
    tokens: int


class AppendResult(NamedTuple):
    """`rows` answers the drafts one by one (a no-op's row is the stored one); `appended` are the new rows among them."""

    session: SessionRow
    rows: tuple[MessageRow, ...]
    appended: tuple[MessageRow, ...]
    flush: Flush | None = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far one block is with one session: everything below `cursor` is absorbed (or parked)."""

    block: str
    scope_key: str
    cursor: int
    target: int
    attempts: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class StateVersion:
    """`version` grows with every commit to a scope's state or records; `deleted_version` with every lost record."""

    block: str
    scope_key: str
    version: int
    deleted_version: int
    pending_erasures: int = 0


@dataclass(frozen=True, slots=True)
class ParkedChunk:
    """A chunk that a block refused `attempts` times; `redelivering` once somebody asked for another try."""

    id: int
    block: str
    from_seq: int
    to_seq: int
    error: str
    attempts: int
    redelivering: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent look at a session. Without a stored session only the states of wider scopes are there."""

    session: SessionRow | None
    cursors: tuple[Cursor, ...] = ()
    states: tuple[StateVersion, ...] = ()
    parked: tuple[ParkedChunk, ...] = ()


@dataclass(frozen=True, slots=True)
class StateRow:
    """A block's saved fields in one scope: `state` is a JSON object, `format` the author's `state_version`."""

    version: int = 0
    deleted_version: int = 0
    format: int = 1
    state: str = "{}"


@dataclass(frozen=True, slots=True)
class RecordRow:
    """One durable row of a block in one scope. `data` is JSON; `version` is the state version that wrote it."""

    key: str
    data: str
    blob: bytes | None = None
    session_uid: str | None = None
    seq: int | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class StateChange:
    """What a block wrote: its fields (None = unchanged), rows to upsert, keys to delete.

    `absorb_again` (in `commit_change` only) sends the cursors of its scope back to their start.
    """

    state: str | None = None
    format: int = 1
    put: tuple[RecordRow, ...] = ()
    delete: tuple[str, ...] = ()
    absorb_again: bool = False

    @property
    def empty(self) -> bool:
        return self.state is None and not self.put and not self.delete


Purpose = Literal["deliver", "write"]
"""What a lease is for: to carry out deliveries and erasures, or to change state by hand."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to one (scope, block) pair until `seconds` after its last renewal, by the database's clock.

    Those who deliver exclude each other, and so do those who write by hand; but writing by hand does not wait for a delivery,
    whose block may be asking a model. What a delivery made of a state that was changed meanwhile cannot be committed.
    """

    scope_key: str
    block: str
    token: str
    purpose: Purpose = "deliver"


@dataclass(frozen=True, slots=True)
class Claim:
    """One pending delivery under a lease. With `parked_id` it repeats a parked chunk, else it moves the cursor."""

    lease: Lease
    session: SessionRow
    cursor: int
    target: int
    attempts: int
    parked_id: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a block receives together: the stored messages of `[from_seq, to_seq)` and the state to start from.

    `rows` has no system and developer messages; it may be empty, then only the cursor moves.
    """

    from_seq: int
    to_seq: int
    rows: tuple[MessageRow, ...]
    state: StateRow


@dataclass(frozen=True, slots=True)
class Erasure:
    """A durable order to forget: `seqs` of a session, or with None all of it; with `session_uid` None the whole scope.

    Without any seqs it erases nothing: it tells a block that its shared records are in a new scope, after a reset.
    """

    id: int
    tenant: str
    block: str
    scope_key: str
    session_uid: str | None
    seqs: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ErasureClaim:
    """An erasure under the lease of its (scope, block) pair, with the state to start from."""

    lease: Lease
    erasure: Erasure
    state: StateRow


@dataclass(frozen=True, slots=True)
class Pending:
    """How much is waiting, and in how many seconds the next of it may be tried (0 = now, None = nothing waits)."""

    deliveries: int = 0
    erasures: int = 0
    next_in: float | None = None

    @property
    def any(self) -> bool:
        return bool(self.deliveries or self.erasures)


@dataclass(frozen=True, slots=True)
class BlockLag:
    """How far a block is behind: in how many sessions, by how many messages at most; chunks it refused, and erasures to do."""

    block: str
    sessions: int = 0
    messages: int = 0
    parked: int = 0
    erasures: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A line of a session listing; times in microseconds since 1970 UTC."""

    tenant: str
    session_id: str
    user_id: str | None
    messages: int
    created_at: int
    updated_at: int
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkFilter:
    """Whose pending work a worker may take: these blocks, of every session, or of one.

    `scopes` are scope keys whose work counts as that session's too, whichever session it comes from: a block that is
    shared between sessions may have to be rebuilt from all of them.
    """

    blocks: tuple[str, ...]
    tenant: str | None = None
    session_id: str | None = None
    scopes: tuple[str, ...] = ()


class Store(Protocol):
    """A database that keeps sessions, messages, block states and the queue of deliveries."""

    # -- life ------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the database; create the schema if there is none. Safe under concurrent first use, idempotent.

        :raises SchemaVersionError: the schema is older (upgrade it) or newer (update the package) than this code.
        :raises StoreUnreadableError: not a database, no permission, no such folder, or foreign tables of our names.
        """

    async def aclose(self) -> None:
        """Wait for running transactions, then close what this store opened itself. Idempotent."""

    # -- conversation ----------------------------------------------------------------------------------------

    async def append(
        self, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy, *, now: int, known: SessionRow | None = None
    ) -> AppendResult:
        """Insert the drafts in order and, when the policy says so, move the horizon: one transaction.

        - Creates the session with its first message. `known` (an earlier row) saves the look-up; when it is gone or
          stale in uid, the session is looked up by `(tenant, session_id)` and, if need be, created anew.
        - Its cost does not depend on how many messages are stored.
        - A draft with `given_id` whose id is stored with equal `data` (or `partial`) is answered with that row.
        - A flush writes its row, and sets the target of every cursor of the session and of `spec.receivers`.
        - A user message starts a turn: `turn_seq` is its seq. A pinned assistant message pins its turn's user message.

        :raises MessageConflictError: an id is stored with other data; nothing of the batch is written.
        :raises SessionOwnerError: the session has another `user_id`.
        :raises TokenizerChanged: the session's counts are by another tokenizer; `recount` first.
        """

    async def snapshot(self, spec: SessionSpec, *, known: SessionRow | None = None) -> Snapshot:
        """The session row and, when `spec.blocks` is not empty, their cursors, state versions and parked chunks.

        :raises SessionOwnerError: the session has another `user_id`.
        """

    async def visible_rows(self, session: SessionRow, *, after_seq: int = -1) -> tuple[MessageRow, ...]:
        """What the FIFO shows at that version of the session, in order: `horizon <= seq < next_seq`, every pinned row below
        the horizon, the row `turn_seq`, and, when the first active row that is not pinned is no user message, the newest
        user message below the horizon; of these, what is beyond `after_seq`. Later appends are left out.
        """

    async def archived_rows(self, session: SessionRow, *, from_seq: int, max_tokens: int) -> tuple[MessageRow, ...]:
        """The newest rows of `[from_seq, horizon)`, in order, not more than about `max_tokens` tokens of them."""

    async def all_rows(
        self,
        session: SessionRow,
        *,
        after_seq: int = -1,
        before_seq: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> tuple[MessageRow, ...]:
        """Every stored row in order, archived too; of those between `after_seq` and `before_seq` (both left out) the first
        `limit`, or with `newest` the last.
        """

    async def row_by_id(self, session: SessionRow, message_id: str) -> MessageRow | None:
        """The stored row of that message id, if there is one."""

    async def delivered_rows(
        self, scope_key: str, block: str, session_uid: str, *, from_seq: int, to_seq: int
    ) -> tuple[MessageRow, ...]:
        """What of `[from_seq, to_seq)` the block received of that session in that scope, or is about to, in order.

        Nothing for a session that does not feed the scope, and neither system nor developer messages.
        """

    async def recount(self, session: SessionRow, tokenizer: str, tokens: Mapping[int, int]) -> bool:
        """Replace the counts of the active and pinned rows; False when the session changed meanwhile (try again)."""

    async def replace_active(
        self, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy, *, now: int
    ) -> AppendResult:
        """Make the drafts the active messages. A common prefix by id stays, the rest is deleted, new ones get fresh
        seqs, then the horizon moves as usual. Drafts whose id is archived (or pinned) already stand for that row.
        """

    async def flush(self, session: SessionRow, spec: SessionSpec, policy: FlushPolicy, *, final: bool) -> Flush | None:
        """Archive all complete turns, with `final` the current one too (`turn_seq` becomes None)."""

    async def advance_horizon(self, session: SessionRow, spec: SessionSpec, horizon: int) -> Flush | None:
        """Archive up to `horizon` if uid, revision and horizon are still those of `session`; else do nothing."""

    # -- erasing ---------------------------------------------------------------------------------------------

    async def delete_messages(self, session: SessionRow, spec: SessionSpec, message_ids: Sequence[str]) -> int:
        """Delete these messages and everything derived from them; unknown ids are ignored. Returns how many went.

        Records with one of these seqs go in the same transaction; for every block that may have absorbed one of them
        an `Erasure` is queued; the epoch grows, so that no delivery in flight commits. The rules for erasing hold for
        the five methods below too.
        """

    async def rewind(self, session: SessionRow, spec: SessionSpec, message_id: str) -> int:
        """Delete that message and all after it. Returns how many went.

        :raises MessageNotFoundError: there is no such message.
        """

    async def pop(self, session: SessionRow, spec: SessionSpec) -> MessageRow | None:
        """Delete the newest message and return it; None when there is none."""

    async def reset(self, session: SessionRow, spec: SessionSpec) -> SessionRow:
        """Delete the session's messages, flushes, cursors, parked chunks, session-scoped state and records, and the
        records of wider scopes that came from it. The row stays with a new uid and a greater epoch; seqs go on. Records of
        the session's own scope that came from no session (`shared`) stay, in the scope of the new uid, whose blocks are
        told so by an erasure without seqs.
        """

    async def delete_session(self, tenant: str, session_id: str) -> bool:
        """Delete a session as `reset` does, its row too. False when there is none."""

    async def delete_user(self, tenant: str, user_id: str) -> int:
        """Delete all sessions of a user and the user-scoped state. Returns how many sessions went."""

    async def delete_tenant(self, tenant: str) -> int:
        """Delete all sessions of a tenant, all user-scoped and global state of it. Returns how many sessions went."""

    async def purge(self, tenant: str | None, *, inactive_before: int) -> int:
        """Delete every session (of one tenant, or of all) whose `updated_at` is before. Returns how many went."""

    async def list_sessions(
        self,
        tenant: str,
        *,
        prefix: str = "",
        user_id: str | None = None,
        inactive_before: int | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> tuple[SessionInfo, ...]:
        """Sessions in the order of their id; `prefix` is literal, `after` is the last id of the page before."""

    # -- deliveries ------------------------------------------------------------------------------------------

    async def ensure_cursors(self, session: SessionRow, spec: SessionSpec) -> None:
        """Give each of `spec.receivers` a cursor that has none: from seq 0 (or, `start="now"`, from the horizon) to it."""

    async def claim(self, work: WorkFilter, *, seconds: float, limit: int) -> tuple[Claim, ...]:
        """Take due deliveries (back-off over, no live lease on the pair), at most one for each (scope, block) pair.

        Pairs that were served longest ago come first. It waits for no other transaction that claims, delivers or puts: what
        those have locked is left for the next time.
        """

    async def read_chunk(self, claim: Claim, flush_size: int) -> Chunk | None:
        """The next chunk of a claim: one flush, split by `plan_chunks`. None when session or lease are gone."""

    async def renew(self, lease: Lease, session: SessionRow | None, *, seconds: float) -> bool:
        """Prolong a lease. False when it is lost, or when the session was erased or changed epoch."""

    async def commit_delivery(
        self, claim: Claim, chunk: Chunk, change: StateChange, *, writing: Lease | None = None
    ) -> StateRow | None:
        """Write fields, records and cursor (or drop the parked chunk), clear the attempts: one transaction.

        Only if the lease is held and uid and epoch are those of the claim; else None, and nothing is written. `writing` is
        the lease to write, if the caller has taken it.

        :raises StateInUse: somebody is changing the state by hand, or it is not that of the chunk any more.
        """

    async def fail_delivery(
        self, claim: Claim, chunk: Chunk | None, error: str, *, retry_in: float, counted: bool, park: bool
    ) -> None:
        """Note a failed attempt and release the lease. `counted` raises the attempts; `park` sets the chunk aside
        (the cursor goes on), else it is due again in `retry_in` seconds.
        """

    async def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens when it is not held any more."""

    async def pending(self, work: WorkFilter) -> Pending:
        """What waits for delivery or erasure. Parked chunks do not wait. It counts, so its cost grows with what waits."""

    async def next_due(self, work: WorkFilter) -> float | None:
        """In how many seconds to look again for something to claim (0 = now, None = nothing waits); it counts nothing.

        What is leased by somebody else is due when the first lease of these blocks would end.
        """

    async def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever there may be new work for blocks, until cancelled; returns when this database cannot tell."""

    async def lags(self, work: WorkFilter) -> tuple[BlockLag, ...]:
        """How far the blocks of the filter are behind, those that are."""

    async def redeliver(self, session: SessionRow, block: str | None = None) -> int:
        """Make parked chunks of a session due again. Returns how many."""

    async def claim_erasures(self, work: WorkFilter, *, seconds: float, limit: int) -> tuple[ErasureClaim, ...]:
        """Take due erasures of these blocks whose pair has no live lease, of either purpose."""

    async def commit_erasure(
        self, claim: ErasureClaim, change: StateChange, *, rebuild: bool, writing: Lease | None = None
    ) -> bool:
        """Finish an erasure: write the change, or with `rebuild` drop the scope's state and records and set the
        cursors of its sessions back to their start, so that what remains is absorbed anew. False if the lease is lost.

        :raises StateInUse: somebody is changing the state by hand, or it is not that of the claim any more.
        """

    async def fail_erasure(self, claim: ErasureClaim, error: str, *, retry_in: float) -> None:
        """Note a failed attempt and release the lease; the erasure stays until it succeeds."""

    # -- block state -----------------------------------------------------------------------------------------

    async def lease(self, scope_key: str, block: str, *, seconds: float) -> Lease | None:
        """Take the lease to write a pair by hand; None when somebody else holds it. Until it ends no delivery commits."""

    async def commit_change(self, lease: Lease, change: StateChange, *, session: SessionRow | None) -> StateRow | None:
        """Write a correction, keeping the lease; None when it is lost or the session was erased meanwhile."""

    async def read_state(self, scope_key: str, block: str) -> StateRow:
        """The saved fields of a block in a scope; an empty `StateRow` when nothing was saved."""

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
    ) -> tuple[RecordRow, ...]:
        """Records in the order of their keys, by exact `keys`, literal `prefix`, or `version > changed_since`."""

    async def count_records(self, scope_key: str, block: str) -> int:
        """How many records a block has in a scope."""

    async def pending_erasures(self, scope_key: str, block: str) -> tuple[Erasure, ...]:
        """Erasures of a pair that are not carried out yet, for readers that must filter meanwhile; none without seqs."""


class TokenizerChanged(Exception):
    """Internal: the session's counts were made by another tokenizer; the caller recounts and tries again."""


class StateInUse(Exception):
    """Internal: what a delivery or erasure made cannot be written now; its caller looks at the state and tries again."""
