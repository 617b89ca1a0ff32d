"""Histories of other libraries, brought over by `python -m memory_engine import`; one file for each source.

Nothing here imports the library that wrote a history: what it left behind is read as it stands in the database or file.
"""
