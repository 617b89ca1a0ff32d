"""Data files of this package: the token ranks of o200k_base, and the transcript of the demo. See NOTICE.md."""
