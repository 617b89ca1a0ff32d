"""What blocks that ask a language model have in common: the conversation as data, replies as JSON, and the asking itself."""
