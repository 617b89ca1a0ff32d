"""What a block's language model was asked and cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """Calls of a model with the tokens that went in and came out; `failed` are those calls that brought nothing to use."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failed: int = 0

    def add(self, other: Usage) -> None:
        """Take the other's numbers in."""
        self.calls += other.calls
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.failed += other.failed
