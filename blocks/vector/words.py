"""Texts to the words they are found by: Unicode segmentation, folding, stemming; no network, no model.

Words are runs of letters and digits. Scripts that are written without spaces have no such runs: Chinese, Japanese and
Korean text is cut into overlapping pairs of characters, as Lucene's CJKAnalyzer does, Thai, Lao, Khmer and Burmese into
overlapping threes. Words of one Chinese character (cat, car, tea) are found as well: each character is stored for itself,
and asked for where it stands alone between kana or words of grammar.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Final

import regex

from memory_engine.errors import BlockDefinitionError

_RUN = regex.compile(
    r"(?P<cjk>[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\u30fc\u3005]+)"
    r"|(?P<sea>[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+)"
    r"|(?P<word>(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{M}\p{N}])+)"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
"""The same where there is nothing else, ten times as fast."""
_PAIRED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\u30fc\u3005]+")
_NOUN = r"^\p{Hangul}(?=\p{Hangul}$)"
"""A Korean noun of one syllable with its particle."""
_SINGLES = regex.compile(rf"\p{{Han}}|{_NOUN}")
_ALONE = regex.compile(rf"(?<!\p{{Han}})\p{{Han}}(?!\p{{Han}})|{_NOUN}")
_ACCENTS = regex.compile(r"(?<=\p{Latin})\p{Mn}+")
_LONGEST: Final = 64
"""Characters of a word that are looked at: what is longer is data, not language."""
_LONGEST_TEXT: Final = 200_000
"""Characters of a text that are looked at; items are passages far shorter than that."""
_ENDS: Final = 4_000
"""Of a long query so many characters of its beginning and of its end are read: more words than they have are not looked
for, questions stand there, and the event loop waits meanwhile."""
_END_WORDS: Final = 500
"""So many words at each end: in some scripts every character begins one."""
_TELLING: Final = 2
"""So many more words of its grammar show that a text is in another language; in a question without words of the own, one."""
_ASKS = regex.compile(r"[?？؟]")
_HEAPS = regex.compile(r"(\p{M}{8})\p{M}+")
"""Marks on one letter, more than any language has: putting them in order takes a time that is their number squared."""

_CODES: Final = {
    "ar": "arabic", "hy": "armenian", "eu": "basque", "ca": "catalan", "da": "danish", "nl": "dutch", "en": "english",
    "fi": "finnish", "fr": "french", "de": "german", "el": "greek", "hi": "hindi", "hu": "hungarian", "id": "indonesian",
    "ga": "irish", "it": "italian", "lt": "lithuanian", "ne": "nepali", "no": "norwegian", "pt": "portuguese",
    "ro": "romanian", "ru": "russian", "sr": "serbian", "es": "spanish", "sv": "swedish", "ta": "tamil", "tr": "turkish",
    "yi": "yiddish",
}  # fmt: skip

# Words that carry grammar rather than meaning, by their frequency in running text. They stay in the index and are only
# left out of queries, where "what did you do with the" would otherwise outweigh the one word that matters.
_FUNCTION_WORDS: Final = {
    "english": """
        a about again against all also am among an and any are as at be been before being between both but by can
        could d did do does done during each every few for from had has have having he her here him his how i if in
        into is it its just ll m may me might more most must my no nor not of on once or other our over own per re s
        same shall she should so some t than that the their them then there these they this those through to under us
        ve via was we were what when where which who whom whose why will with within without would you your
    """,
    "german": """
        aber als am an auch auf aus bei bin bis bist da damit dann das dass dem den der des die dies diese dieser dir
        doch du durch ein eine einem einen einer eines er es euch für hab habe haben hast hat hatte hatten ich ihm ihn
        ihr ihre im in ins ist ja kann kein keine können man mein meine mich mir mit muss nach nicht noch nun nur ob
        oder ohne sein seine sich sie sind so über um und uns unser unter vom von vor war waren was weil welche
        welcher welches wem wen wenn wer werden wie wieder wir wird wo woher wohin warum wann worden wurde würde zu
        zum zur
    """,
    "french": """
        à ai au aux avec c ce ces cette comme d dans de des du elle elles en est et eu fait il ils j je l la le les
        leur lui m ma mais me mes moi mon n ne nos notre nous on ont ou où par pas pour qu que quel quelle quelles
        quels qui quand comment pourquoi s sa se ses si son sont sur t ta te tes toi ton tu un une vos votre vous y
        été était
    """,
    "spanish": """
        a al cómo como con cuál cuándo de del dónde donde e el él ella ellas ellos en era es esa ese eso esta está
        este esto fue ha han has hay he la las le les lo los me mi mis muy nos o para pero por porqué porque qué que
        quién quien se ser si sí sin sobre son su sus te ti tu tus un una uno y ya yo
    """,
    "italian": """
        a ai al alla anche c che chi ci come con cosa da dal dalla dei del della delle di do dove e è era gli ha hai
        ho i il in io l la le lei lo loro lui ma mi mia mio ne nel nella no noi non o per perché più quale quali
        quando quanto questa questo se sei si sono su sua suo ti tra tu tua tuo un una uno vi
    """,
    "portuguese": """
        a à ao aos as às com como da das de dela dele do dos e é ela elas ele eles em era essa esse esta está este eu
        foi há já lhe mais mas me meu minha muito na não nas no nos o onde os ou para pela pelo por porque porquê
        quais qual quando que quê quem se sem ser seu seus são sua suas também te tem teu tua um uma você
    """,
    "dutch": """
        aan al als bij dan dat de der deze die dit doen door een en er had hadden heb hebben heeft hem het hij hoe ik
        in is je kan me meer men met mij mijn naar niet nog of om ons ook op over te tot u uit van voor waar waarom
        want waren was wat we welke wel wie wij worden wordt zal ze zich zij zijn zo zou
    """,
    "danish": """
        af alle alt at blev blive bliver da de dem den denne der deres det dette dig din dine disse dit du efter
        eller en end er et for fra ham han hans har havde have hende hendes her hos hun hvad hvem hvilke hvilken
        hvilket hvis hvor hvordan hvorfor hvornår i ikke ind jeg jer jeres kan kunne man med meget mellem men mig
        min mine mit mod nogen noget nogle nu når og også om op os på sig sin sine sit skal skulle som til ud var
        ved vi vil ville være været
    """,
    "finnish": """
        ei ennen että he hän hänen häntä ja jo joka jos jotka kanssa kenelle keneltä kenen ketkä ketä kuin kuinka
        kuka kun me meidän meitä mihin mikä miksi millainen mille milloin millä minkä minne minua minulla minulle
        minun minä missä mistä miten mitkä mitä mutta myös ne niiden niin niitä nyt nämä ole olemme olen olet oli
        oliko olisi olivat ollut on onko ovat paljonko se sekä sen siellä siinä siitä sinua sinulla sinulle sinun
        sinä sitä tai te teidän teitä tuo tämä tämän tässä tästä tätä vai voi voiko
    """,
    "hungarian": """
        a abban aki akit ami amit arra az azt csak de ebben egy engem ez ezt ha hány hogy hol honnan hová is ki kié
        kinek kit lehet lesz már még meg melyik mennyi mert mi miért mikor milyen minket mit nekem neki neked
        nekünk nem nincs ő ők őt te téged ti vagy van vannak volna volt voltak én és
    """,
    "norwegian": """
        alle at av ble bli blir da de deg dem den denne der deres det dette di din dine disse ditt du ei eller en
        enn er et etter for fra ha hadde han hans har henne hennes her hos hun hva hvem hvilke hvilken hvilket hvor
        hvordan hvorfor i ikke inn jeg kan kunne man med meg mellom men min mine mitt mot mye noe noen nå når og
        også om opp oss på seg sin sine sitt skal skulle som så til ut var ved vi vil ville være vært vår
    """,
    "polish": """
        a aby albo ale bez bo być był była było były ci ciebie co czego czemu czy dla dlaczego do gdy gdzie go i
        ich ile im ja jak jaka jaki jakich jakie jako je jego jej jest jestem jesteś kiedy kim kogo komu kto która
        które którego której który ma mam mamy masz mi mnie moja moje my mój na nad nam nas nasz nasza nasze nie
        nim o od on ona one oni ono po pod przed przez przy się skąd są ta tak tam te tego tej ten to tu twoja
        twoje twój ty w wasz we z za ze że żeby
    """,
    "romanian": """
        a ai al ale am ar are au ca ce cea cei cel cele cine cu cui cum câte când cât că de din după e ea ei el ele
        era este eu fi fost iar la le lui mai mea mei mele meu mi ne noastră noi nostru nu o pe pentru pot sau se
        sunt să ta tale te tu tău un una unde unei unui va voi vor vă în îi îl îmi își îți și
    """,
    "russian": """
        а без был была были было быть в вам вас ваш ваша ваше ваши во вот все всё вы где да для до его ее если есть
        её же за зачем и из или им их к как какая какие какого какой какую когда кого кому которая которое которые
        который кто куда ли меня мне мои мой мое моя моё мы на над нам нас наш наша наше наши не него нет ни них но
        о об он она они оно от откуда по под почему при про с свой себя сколько со так там тебе тебя то того тоже
        тот тут твои твой твоя твоё ты у уже чего чей чем что чтобы чья эта эти это этот я
    """,
    "swedish": """
        alla allt att av blev bli blir de dem den denna deras dess det detta dig din dina ditt du där efter eller
        en er era ert ett från för ha hade han hans har henne hennes hon honom hur här i in inte jag kan kunde man
        med mellan men mig min mina mitt mot mycket ni nu någon något några när och om oss på sedan sig sin sina
        sitt ska skulle som så till upp ut vad var vara varför varifrån varit vart vem vems vi vid vilka vilken
        vilket vår våra vårt än är åt
    """,
    "turkish": """
        acaba ama ancak bana ben beni benim bir biz bize bizi bizim bu bunu bunun da daha de değil diye en gibi
        hangi hangisi hem hep ile ise için kadar kaç ki kim kime kimi kimin mi midir mu mü mı mıdır nasıl ne neden
        nedir neler nerede nereden nereye neyi niye niçin o olan olarak oldu ona onlar onu onun sana sen seni senin
        siz size sizi sizin ve veya var ya yok zaman çok şu
    """,
}


# The same for Chinese and Japanese, whatever the language: queries are cut at them. Only what is hardly ever part of a word.
_CJK_FUNCTION_WORDS: Final = """
    什么 什麼 怎么 怎麼 怎样 怎樣 哪里 哪裡 哪裏 哪儿 哪兒 哪个 哪個 为什么 為什麼 多少 几个 幾個 是谁 是誰 时候 時候
    我们 我們 你们 你們 他们 他們 她们 她們 这个 這個 那个 那個 这里 這裡 那里 那裡 没有 沒有 有没有 有沒有 是不是 可以
    一个 一個 因为 因為 所以 但是 还是 還是 如果 的 了 吗 嗎 呢 吧 啊 是 我 你 您 他 她 它 叫 很 这 這 那 哪 谁 誰 请 請
    です でした でしょう ます ました ません ませんでした ください という から まで など こと もの どこ どの どんな どれ
    どう いつ だれ なに なぜ どうして いくつ いくら している していた しました します する した いる いた います
    いました ある あった あります ありました その この あの それ これ あれ だった について には では とは のは のが のを
    ですか ますか 私 僕 俺 何 を
"""


class Words:
    """Cuts texts of one language (a name such as "german" or its code "de") into stems.

    Text in other languages is found as well, by its words as they are written, roughly cut by the wrong stemmer.
    `function_words` replaces the list of words that queries leave out.

    :raises BlockDefinitionError: there is no stemmer for the language; use "none" to leave words as they are.
    """

    def __init__(self, language: str = "english", function_words: Iterable[str] | None = None) -> None:
        self.language = _CODES.get(language.lower(), language.lower())
        self._stemmer = _stemmer(self.language)
        given = _FUNCTION_WORDS.get(self.language, "").split() if function_words is None else function_words
        self._function_words = frozenset(_fold(word) for word in given)
        self._guesses = function_words is None
        self._breaks = _breaks(_CJK_FUNCTION_WORDS.split() if function_words is None else self._function_words)

    def __deepcopy__(self, memo: object) -> Words:
        # Nothing in it changes, and a stemmer cannot be copied.
        return self

    def count(self, text: str) -> Counter[str]:
        """The stems of a text, each with how often it occurs."""
        return Counter(self._stems(_split(_normal(text[:_LONGEST_TEXT]))))

    def content(self, text: str) -> Counter[str]:
        """The same without function words: what a question is about. Empty when it is about nothing.

        Of a long text only its beginning and its end are read.
        """
        # Some characters stand for a dozen.
        words = _split(ends_of(_normal(ends_of(text))), self._breaks)
        words = words if len(words) <= 2 * _END_WORDS else [*words[:_END_WORDS], *words[-_END_WORDS:]]
        grammar = self._function_words
        if self._guesses:
            # A question in another language than that of the stemmer has other words of grammar.
            telling = [word for word in words if word in _any_grammar()]
            found = {language: sum(word in known for word in telling) for language, known in _grammars().items()}
            likely = max(found, key=lambda language: (found[language], language == self.language))
            # "War", "die", "to go" are words of grammar somewhere; one more than English has makes no other language of them.
            own = found.get(self.language, 0)
            if found[likely] - own >= _TELLING or (not own and _ASKS.search(text)):
                grammar |= _grammars()[likely]
        return Counter(self._stems([word for word in words if word not in grammar]))

    def _stems(self, words: list[str]) -> list[str]:
        stems = words if self._stemmer is None else self._stemmer.stemWords(words)
        return _plain(stems)


def _stemmer(language: str) -> Any:
    if language == "none":
        return None
    import Stemmer

    try:
        return Stemmer.Stemmer(language)
    except KeyError:
        known = ", ".join(sorted(set(Stemmer.algorithms()) - {"porter", "dutch_porter", "lovins"}))
        raise BlockDefinitionError(
            f'There is no stemmer for the language {language!r}. Use one of {known}; or "none" to leave words as they are.'
        ) from None


@cache
def _grammars() -> dict[str, frozenset[str]]:
    return {language: frozenset(map(_fold, words.split())) for language, words in _FUNCTION_WORDS.items()}


@cache
def _any_grammar() -> frozenset[str]:
    return frozenset().union(*_grammars().values())


@lru_cache(maxsize=4096)
def _fold(word: str) -> str:
    return _normal(word)


def _plain(stems: list[str]) -> list[str]:
    """Without accents on Latin letters, which people leave out when they ask."""
    # All at once: a text in Chinese has as many as it has characters.
    text = "\n".join(stems)
    if text.isascii():
        return stems
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text))).split("\n")


def _breaks(words: Iterable[str]) -> regex.Pattern[str] | None:
    """Finds function words within runs that have no spaces, the longest first."""
    inside = sorted((word for word in words if _PAIRED.fullmatch(word)), key=lambda word: (-len(word), word))
    return regex.compile("|".join(inside)) if inside else None


def ends_of(text: str) -> str:
    """A text, of a long one its beginning and its end."""
    return text if len(text) <= 2 * _ENDS else f"{text[:_ENDS]}\n{text[-_ENDS:]}"


def _normal(text: str) -> str:
    """As words are compared: without regard to case, and to how a character was put together."""
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", _HEAPS.sub(r"\1", text)).casefold()


def _split(text: str, breaks: regex.Pattern[str] | None = None) -> list[str]:
    """The words of a text that is `_normal`; of a query, when it is told where runs without spaces break."""
    if text.isascii():
        return [word[:_LONGEST] for word in _ASCII_WORD.findall(text)]
    words: list[str] = []
    for match in _RUN.finditer(text):
        run = match.group()
        if match.lastgroup == "word":
            words.append(run[:_LONGEST])
        elif match.lastgroup == "sea":
            words.extend(_pieces(run, 3))
        elif breaks is None:
            words.extend(_pieces(run, 2))
            words.extend(single for single in _SINGLES.findall(run) if single != run)
        else:
            parts = [part for part in breaks.split(run) if part]
            for part in parts:
                if len(part) > 1 or part == run:
                    words.extend(_pieces(part, 2))
                words.extend(single for single in _ALONE.findall(part) if single != run)
    return words


def _pieces(run: str, size: int) -> list[str]:
    return [run[start : start + size] for start in range(max(1, len(run) - size + 1))]
