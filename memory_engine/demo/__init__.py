"""The demo: the whole of Apollo 13 through a memory of 4,000 tokens. Run it with `python -m memory_engine.demo`."""
