"""Texts that are no conversation: which are taken, and under which ids."""

from __future__ import annotations

from typing import Any, cast

import pytest

from memory_engine.blocks.vector.documents import documents_of, ids_of


@pytest.mark.parametrize(("given", "expected"), [(0, "0"), (7, "7"), ("a", "a"), ("0", "0")])
def test_an_id_is_taken_as_it_is_given(given: object, expected: str) -> None:
    assert [one.id for one in documents_of(["a text"], {"id": given})] == [expected]


def test_without_an_id_each_text_gets_one() -> None:
    assert len({one.id for one in documents_of(["a", "b", "c"], [{}, {"id": None}, {"page": 1}])}) == 3


@pytest.mark.parametrize(
    ("texts", "metadata", "told"),
    [
        (["fine", ""], None, "text 2 is blank; leave it out"),
        ([" \n\t\u3000"], None, "text 1 is blank"),
        ("", None, "text 1 is blank"),
        ([b"bytes"], None, r"text 1 must be text \(str\), not bytes; read files and decode bytes"),
        ([None], None, "text 1 must be text"),
        (["\ud800"], None, "text 1 .*surrogate"),
        (["fine"], [7], "metadata of text 1 must be a dict, not int"),
        (["fine"], {1: "one"}, "metadata of text 1 is not JSON: .*key"),
        (["fine", "fine"], [{}, {"deep": {2: "two"}}], "metadata of text 2 is not JSON: .*key"),
        (["fine"], {"when": object()}, "metadata of text 1 is not JSON"),
        (["fine"], {"score": float("nan")}, "metadata of text 1 is not JSON"),
        (["fine"], {"id": ""}, "id of text 1 must be a text of 1 to 400 characters"),
        (["fine"], {"id": "x" * 401}, "id of text 1 must be"),
        (["fine"], {"id": "\x00"}, "id of text 1 must be"),
        (["fine"], {"id": True}, "id of text 1 must be"),
        (["fine"], {"id": 1.5}, "id of text 1 must be"),
        ({"a": "b"}, None, "documents are a text or a list of texts, .* not a dict"),
        (None, None, "documents are a text or a list of texts, .* not None"),
        (b"bytes", None, "documents are a text or a list of texts, .* not a bytes"),
        (7, None, "documents are a text or a list of texts, .* not a int"),
        (["fine"], "title", "metadata is a dict for all texts or a list with one for each, not a str"),
        (["fine"], 7, "metadata is a dict for all texts or a list with one for each, not a int"),
    ],
)
def test_what_cannot_be_stored_is_refused(texts: Any, metadata: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        documents_of(texts, metadata)


def test_one_id_is_not_a_list_of_letters() -> None:
    assert ids_of("kb") == ["kb"]
    assert ids_of(["kb", "kb", "b"]) == ["kb", "b"]
    assert ids_of(None) is None
    assert ids_of(cast(Any, [7])) == ["7"], "as add_documents takes whole numbers"


@pytest.mark.parametrize("wrong", [b"kb", {"kb": 1}, [None], 1.5, [True]])
def test_what_is_no_id_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="documents are removed by an id or a list of ids"):
        ids_of(wrong)
