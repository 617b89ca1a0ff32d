"""The store on SQL databases through SQLAlchemy Core; imported on demand, so that `memory_engine` alone stays light."""

from __future__ import annotations

from memory_engine.sql.store import SqlStore

__all__ = ["SqlStore"]
