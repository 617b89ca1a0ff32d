#!/usr/bin/env bash
# Builds the sdist, the wheel from the sdist, and tries both in clean environments.
#
#   tools/check_dist.sh [python ...]     default: every python3.11 to python3.14 that is installed
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

pythons=("$@")
if [ ${#pythons[@]} -eq 0 ]; then
    for python in python3.11 python3.12 python3.13 python3.14 "$HOME"/.pyenv/versions/3.1[1-9]*/bin/python; do
        "$python" -c 'import ensurepip, venv' 2>/dev/null || continue
        version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        [[ " ${versions[*]-} " == *" $version "* ]] && continue
        versions+=("$version")
        pythons+=("$python")
    done
fi
[ ${#pythons[@]} -gt 0 ] || { echo "No Python 3.11 or newer was found." >&2; exit 1; }

"${pythons[0]}" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
ls -l "$work/dist"

# Both hold every file of the packages exactly once, under the right name; the wheel holds nothing else.
"$work/build/bin/python" - "$root" "$work"/dist/* <<'PY'
import subprocess, sys, tarfile, zipfile
from pathlib import Path

root, (sdist, wheel) = Path(sys.argv[1]), sorted(sys.argv[2:], key=lambda name: name.endswith(".whl"))
listed = subprocess.run(["git", "-C", root, "ls-files", "--", "memory_engine", "blocks"], capture_output=True, text=True, check=True)
tracked = {name for name in listed.stdout.split() if (root / name).is_file()}
names = zipfile.ZipFile(wheel).namelist()
shipped = [name for name in names if ".dist-info/" not in name]
expected = {"memory_engine/" + name if name.startswith("blocks/") else name for name in tracked}
assert len(set(names)) == len(names), "the wheel holds a file twice"
assert set(shipped) == expected, f"wheel: missing or not in git {sorted(set(shipped) ^ expected)}"
with tarfile.open(sdist) as archive:
    members = [member.name.partition("/")[2] for member in archive if not member.isdir()]
assert len(set(members)) == len(members), "the sdist holds a file twice"
assert tracked <= set(members), f"sdist: missing {sorted(tracked - set(members))}"
assert not any(name.startswith("memory_engine/blocks") for name in members), "the sdist followed the symlink"
for name in ("Makefile", "CHANGELOG.md", "LICENSE", "tests/conftest.py", "tools/make_ranks.py", "docs/architecture.md"):
    assert name in members, f"sdist: missing {name}"
PY

cat >"$work/try.py" <<'PY'
import asyncio
import importlib.util
import tempfile
from importlib.metadata import version
from pathlib import Path

import memory_engine
from memory_engine import Memory
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import MissingExtraError
from memory_engine.tokens import TokenCounter

assert importlib.util.find_spec("blocks") is None
assert version("memory-engine-blocks") == memory_engine.__version__
assert (Path(memory_engine.__file__).parent / "py.typed").is_file()
assert TokenCounter().text("Hello, world!") == 4

# No framework is here, and each integration says which extra brings it.
for name in ("agent_framework", "google_adk", "langchain", "llama_index", "openai_agents", "pydantic_ai"):
    try:
        importlib.import_module(f"memory_engine.integrations.{name}")
    except MissingExtraError as error:
        assert f"memory-engine-blocks[{name.replace('_', '-')}]" in str(error), error
    else:
        raise AssertionError(f"{name} was imported without its framework")


async def main(uri: str) -> None:
    block = StaticMemoryBlock(static_content="Be brief.")
    async with Memory.from_defaults("s", async_database_uri=uri, memory_blocks=[block]) as memory:
        await memory.put({"role": "user", "content": "hello"})
    async with Memory.from_defaults("s", async_database_uri=uri, memory_blocks=[block]) as memory:
        texts = [message.content for message in await memory.get()]
        assert len(texts) == 2 and "Be brief." in texts[0] and texts[1] == "hello", texts


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(f"sqlite+aiosqlite:///{folder}/memory.db"))
PY
cd "$work"
for python in "${pythons[@]}"; do
    for file in dist/*; do
        rm -rf venv
        "$python" -m venv venv
        venv/bin/pip install --quiet "$file"
        venv/bin/python -I -W error try.py
        venv/bin/python -I -m memory_engine.demo --help >/dev/null
        venv/bin/python -I -m memory_engine import --help >/dev/null
        echo "$("$python" --version): ${file##*.} works"
    done
done
