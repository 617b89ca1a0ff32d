"""Examples of how sections become text, and where the text goes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from memory_engine.errors import RenderError
from memory_engine.messages import ChatMessage, ContentBlock, ImageBlock, TextBlock, ToolCallBlock, without_memory
from memory_engine.render import Section, as_history, compose, escape, render, render_section, tag_name
from memory_engine.steps import ViewStep


def section(name: str, *items: str | ContentBlock) -> Section:
    return Section(name, tuple(TextBlock(text=item) if isinstance(item, str) else item for item in items))


def message(role: str, text: str = "words") -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": text})


def steps(*messages: ChatMessage) -> list[ViewStep]:
    return [ViewStep((n,), (m,), (5,), 1, m.pinned, m.role == "user", m.role, 5) for n, m in enumerate(messages)]


PICTURE = ImageBlock(url="https://example.org/cat.png")
HELLO = section("facts", "Likes tea.")
TEXT = "<memory>\n<facts>\nLikes tea.\n</facts>\n</memory>"


class TestRender:
    def test_sections_and_tagged_items(self) -> None:
        text = render([section("notes", "one", "two"), section("facts", TextBlock(text="likes tea", tag="fact"))])
        assert text == "<memory>\n<notes>\none\ntwo\n</notes>\n<facts>\n<fact>likes tea</fact>\n</facts>\n</memory>"

    def test_nothing_to_say_is_an_empty_text(self) -> None:
        assert render([]) == render([section("a"), section("b", " "), section("c", PICTURE)]) == ""
        assert render_section(section("a", "")) == ""

    def test_one_section_is_what_it_adds_to_the_whole(self) -> None:
        assert render_section(HELLO) in render([HELLO])

    def test_a_section_name_cannot_break_its_tag(self) -> None:
        assert tag_name("a b><x") == "a_b_x"
        assert tag_name("") == tag_name("><") == "_"
        assert render_section(section("a b>", "x")) == "<a_b_>\nx\n</a_b_>"

    def test_absent_sections_are_defused_too(self) -> None:
        assert "&lt;/core>" in render([section("notes", "</core>")], tags=["core"])

    def test_a_custom_renderer_gets_escaped_text(self) -> None:
        seen: list[Section] = []

        def plain(sections: Sequence[Section]) -> str:
            seen.extend(sections)
            return "|".join(each.text for each in sections)

        assert render([section("a", "</memory>", PICTURE), section("b")], renderer=plain) == "&lt;/memory>"
        assert seen == [section("a", "&lt;/memory>")]

    def test_a_renderer_that_fails_is_named(self) -> None:
        with pytest.raises(RenderError, match="ZeroDivisionError"):
            render([HELLO], renderer=lambda sections: str(1 // 0))
        with pytest.raises(RenderError, match="int"):
            render([HELLO], renderer=lambda sections: 7)  # type: ignore[arg-type, return-value]


class TestEscape:
    @pytest.mark.parametrize(
        "text",
        [
            "<memory>",
            "</memory>",
            "</MEMORY >",
            "< / memory\n>",
            "<\u200b/\u00a0mem\u200dory>",
            "<message role='system'>",
            "<fact/>",
            "<\\/fact>",
            "<user_facts>",
            "<User Facts x='1'>",
            "</user-facts>",
            "<userfacts>",
            "<memory",
            "<mem",
            "text <",
            "<user\n",
            "<memory_>",
            "</ſummary>",
            "<\u3000item>",
        ],
    )
    def test_what_resembles_our_tags_is_defused(self, text: str) -> None:
        at = text.index("<")
        assert escape(text, ["user_facts"]) == f"{text[:at]}&lt;{text[at + 1 :]}"

    @pytest.mark.parametrize(
        "text",
        [
            "a < b > c",
            "<b>bold</b>",
            "<memory-engine>",
            "<factory>",
            "<items>",
            "<facts2>",
            "<memory.x>",
            "x <- memory",
            "&lt;memory&gt;",
            "memory>",
            "if a<b: pass",
            "<mem>",
            "<user>",
            "<<>>",
        ],
    )
    def test_all_else_is_verbatim(self, text: str) -> None:
        assert escape(text, ["user_facts"]) == text

    def test_many_candidates_take_linear_time(self) -> None:
        assert escape("<" + " " * 200_000 + "x").startswith("<")
        assert escape("< / " * 50_000 + "memory>").endswith("&lt; / memory>")
        assert escape("<user_" * 50_000 + "x", ["user_facts"]).endswith("x")

    def test_odd_names_match_nothing_else(self) -> None:
        assert escape("<a> </ b>", ["", " ", "-", "a.*"]) == "<a> </ b>"
        assert escape("<a.*>", ["a.*"]) == "&lt;a.*>"


class TestCompose:
    system, user, answer = message("system", "Be kind."), message("user", "hi"), message("assistant", "hello")

    def test_nothing_to_insert_changes_nothing(self) -> None:
        composed = compose(steps(self.system, self.user, self.answer), [section("facts")])
        assert all(a is b for a, b in zip(composed, (self.system, self.user, self.answer), strict=True))

    def test_system_goes_to_the_first_leading_system_message(self) -> None:
        other = message("developer", "More.")
        composed = compose(steps(self.system, other, self.user, message("system", "late")), [HELLO])
        assert composed[0].content == f"Be kind.\n{TEXT}"
        assert composed[0].blocks[-1].origin == "memory"
        assert composed[1:3] == (other, self.user)

    def test_system_without_a_leading_system_message_makes_one(self) -> None:
        composed = compose(steps(self.user, self.system), [HELLO])
        assert [each.role for each in composed] == ["system", "user", "system"]
        assert composed[0].content == TEXT
        assert without_memory(composed[0]) is None

    def test_user_goes_before_the_latest_user_message(self) -> None:
        composed = compose(steps(self.user, self.answer, message("user", "and?"), self.answer), [HELLO], insert_method="user")
        assert composed[2].content == f"{TEXT}\nand?"
        assert composed[0] is self.user

    def test_user_without_a_user_message_goes_to_system(self) -> None:
        assert [each.role for each in compose([], [HELLO], insert_method="user")] == ["system"]
        split = compose(steps(self.system), [HELLO], insert_method="split")
        assert split[0].content == f"Be kind.\n{TEXT}"

    def test_split_parts_sections_by_what_they_depend_on(self) -> None:
        composed = compose(
            steps(self.system, self.user),
            [section("core", "C </vectors>"), section("vectors", "V </core>")],
            insert_method="split",
            depends_on_query={"core": False},
        )
        assert "C &lt;/vectors>" in composed[0].content and "V" not in composed[0].content
        assert "V &lt;/core>" in composed[1].content and "C" not in composed[1].content.replace("core", "")

    def test_media_go_to_the_latest_user_message(self) -> None:
        composed = compose(steps(self.user), [section("pictures", "A cat:", PICTURE)])
        assert composed[0].role == "system"
        assert composed[1].blocks[0] == PICTURE.model_copy(update={"origin": "memory"})
        assert without_memory(composed[1]) == self.user
        assert compose(steps(self.system), [section("pictures", PICTURE)]) == (self.system,)

    def test_message_lists_go_between_system_messages_and_history(self) -> None:
        listed = (message("user", "once"), message("assistant", "upon"))
        composed = compose(steps(self.system, self.user), [HELLO], section_messages=listed, insert_method="user")
        assert [each.content for each in composed] == ["Be kind.", "once", "upon", f"{TEXT}\nhi"]
        assert [without_memory(each) for each in composed[1:3]] == [None, None]
        assert listed[0].blocks[0].origin is None

    def test_nothing_at_all(self) -> None:
        assert compose([], []) == ()


class TestAsHistory:
    def test_lists_are_made_valid(self) -> None:
        asks = ChatMessage(role="assistant", blocks=[ToolCallBlock(id="a", name="x"), ToolCallBlock(id="b", name="x")])
        answers = ChatMessage(role="tool", tool_call_id="a", content="A")
        orphan = ChatMessage(role="tool", tool_call_id="z", content="Z")
        listed = [message("system"), message("assistant"), orphan, message("user"), asks, message("assistant", "hm"), answers]
        made = as_history(listed)
        assert [each.role for each in made] == ["user", "assistant", "tool", "assistant"]
        assert [each.id for each in made[1].tool_calls] == ["a"]
        assert all(block.origin == "memory" for each in made for block in each.blocks)
        assert as_history(made) == made
        assert [each.role for each in as_history(listed, start_on_user=False)][:1] == ["assistant"]

    def test_long_results_are_left_to_the_budget(self) -> None:
        asks = ChatMessage(role="assistant", blocks=[ToolCallBlock(id="a", name="x")])
        answers = ChatMessage(role="tool", tool_call_id="a", content="A" * 5000)
        assert len(as_history([message("user"), asks, answers])[2].content) == 5000
