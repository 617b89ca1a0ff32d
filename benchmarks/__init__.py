"""What the engine costs, measured beside what one would use instead. Public API only; see README.md."""
