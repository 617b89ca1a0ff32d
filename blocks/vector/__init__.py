"""Recall: items in a vector store, found by their words and their vectors."""
