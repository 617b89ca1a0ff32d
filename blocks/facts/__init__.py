"""Facts with the messages that prove them: learned, corrected, condensed, and forgotten with their proofs."""
