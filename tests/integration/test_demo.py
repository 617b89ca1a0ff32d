"""The demo on its first few hundred utterances: the totals are right, a second start sees everything."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from memory_engine.demo import __main__ as demo
from memory_engine.demo import drawing, transcript
from memory_engine.demo.mission_log import PHASES, WATCHED, MissionLog, sentence

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return subprocess.run(
        [sys.executable, "-m", "memory_engine.demo", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    kept = tmp_path_factory.mktemp("demo") / "apollo 13%20#a?b.db"
    return run("--limit", str(LIMIT), "--keep", str(kept), "--token-limit", "2000"), kept


def test_it_ends_well(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert done.stderr == ""


def test_totals_are_right(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, kept = finished
    assert re.search(rf"messages\s+{LIMIT} in \d+ puts", done.stdout)
    assert re.search(r"budget\s+\d+ contexts taken, the largest [\d,]+ of 2,000 tokens, 0 over", done.stdout)
    with sqlite3.connect(kept) as database:
        stored, tokens = database.execute("SELECT count(*), sum(tokens) FROM memory_messages").fetchone()
    database.close()
    assert stored == LIMIT
    assert re.search(rf"tokens seen\s+{tokens:,}\b", done.stdout)


def test_facts_and_summary_grow(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    output = finished[0].stdout
    told = re.search(
        r"understood\s+(\d+) facts \((\d+) corrected\) and (\d+) tokens of summary from 300\s+utterances, (\d+)", output
    )
    assert told is not None, output
    facts, corrected, summary, calls = map(int, told.groups())
    assert facts > 0 and summary > 0 and calls > 0
    grown = [int(number) for number in re.findall(r"^[\d:]+\s+(\d+) facts, \d+ earlier ones corrected", output, re.MULTILINE)]
    assert len(grown) == 4 and grown[-1] + corrected >= grown[0]


def test_no_context_is_over_the_limit(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    shown = re.findall(r"([\d,]+) of 2,000 tokens, \d+ %", finished[0].stdout)
    assert len(shown) == len(transcript.moments(LIMIT)) == 2
    assert all(0 < int(tokens.replace(",", "")) <= 2000 for tokens in shown)


def test_the_second_start_sees_everything(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    output = finished[0].stdout
    assert f"{LIMIT} of {LIMIT} stored, all the same" in output
    for check in ("messages", "mission log", "context", "session ended"):
        assert re.search(rf"^✓ {check} ", output, re.MULTILINE), output
    assert f"{LIMIT} in the log, each exactly once" in output


def test_without_a_terminal_the_output_is_clean_text(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    output = finished[0].stdout
    assert "\x1b" not in output
    assert "\r" not in output
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments", [("--limit", "0"), ("--token-limit", "10"), ("--keep", "/nowhere/at/all.db"), ("--keep", ".")]
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        demo.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_transcript_is_whole() -> None:
    messages = transcript.load()
    assert len(messages) == 10_876
    assert {message.role for message in messages} == {"user", "assistant"}
    times = [message.created_at for message in messages]
    assert times == sorted(times, key=lambda time: time or transcript.LAUNCH)
    assert all(message.content and message.name and message.metadata["t"] for message in messages)
    assert messages[2199].content.startswith("Houston, we've had a problem.")
    assert [moment.index for moment in transcript.moments(10_876)] == [moment.index for moment in transcript.MOMENTS]
    assert transcript.moments(0) == []


def test_batches_hold_every_message_once_and_end_at_the_moments() -> None:
    messages = transcript.load()
    ends = {moment.index + 1 for moment in transcript.MOMENTS}
    found = list(transcript.batches(messages, ends))
    assert [message for batch in found for message in batch] == messages
    assert all(len({str(message.metadata["t"])[:6] for message in batch}) == 1 for batch in found)
    sizes = [len(batch) for batch in found]
    assert ends <= {sum(sizes[: index + 1]) for index in range(len(sizes))}
    assert list(transcript.batches([], ends)) == []


async def test_the_mission_log_finds_every_phase_and_word() -> None:
    log = MissionLog()
    await log._aput(transcript.load())
    assert log.absorbed == sum(log.spoken.values()) == 10_876
    assert list(log.phases) == list(PHASES)
    assert set(log.words) == set(WATCHED)
    assert log.phases["emergency"] == "055:55:35"
    assert log.phases["splashdown"] == "142:54:56"
    words = {word for moment in transcript.MOMENTS for word in moment.words}
    assert words <= set(WATCHED)


def test_a_sentence_is_cut_out_of_its_text() -> None:
    text = "Roger. We've had a problem. Stand by."
    assert sentence(text, text.index("problem")) == "We've had a problem."
    long = "word " * 100 + "problem " + "word " * 100
    assert "problem" in (cut := sentence(long, long.index("problem")))
    assert cut[0] == cut[-1] == "…"
    assert len(cut) <= 112
    assert sentence("", 0) == ""


@pytest.mark.parametrize("width", [10, 37, 80])
def test_bars_are_as_long_as_they_should_be(width: int) -> None:
    pieces = drawing.bar([(1, "a", ""), (2700, "b", ""), (0, "c", "")], 4000, width)
    text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
    assert len(text) == width
    assert text.startswith("ab")
    assert abs(text.count("b") + 1 - width * 2701 / 4000) <= 1


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "60", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    screen = drawing.Screen(terminal)
    screen.progress(5, 10, "left", "right", force=True)
    screen.rule("A title that is longer than any terminal of this width could ever show", "right")
    screen.line(("text\x1b[31m\n", "bold"), "more " * 30)
    return terminal.getvalue()


def test_a_terminal_gets_colours_and_a_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = drawn(monkeypatch)
    assert output.startswith("\r")
    assert "\x1b[1;36m" in output
    assert "\x1b[31m" not in output, "text of others must not steer the terminal"
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert max(len(line) for line in re.split(r"[\r\n]", plain)) <= 60


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in drawn(monkeypatch, NO_COLOR="1")
    assert "\r" not in drawn(monkeypatch, TERM="dumb")


def test_a_stream_that_knows_ascii_only_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert drawn(monkeypatch).isascii()
