"""Which language a text is in: an estimate from its script and, for Latin letters, from its commonest words."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, repeat

from tokenclean.checks.findings import answers_of
from tokenclean.pool.conversation import Conversation

UNKNOWN = "unknown"

_LOOKED_AT = 300  # characters of a row
_LEAST_LETTERS, _LEAST_WORDS = 12, 3
_LEAST_SHARE = 0.12  # of the words must be among the commonest of the language

_SCRIPTS = {
    "Japanese": "\u3040-\u30ff",
    "Korean": "\uac00-\ud7af\u1100-\u11ff",
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff",
    "Cyrillic": "\u0400-\u04ff",
    "Arabic": "\u0600-\u06ff",
    "Hindi": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Greek": "\u0370-\u03ff",
    "Hebrew": "\u0590-\u05ff",
    "Georgian": "\u10a0-\u10ff",
    "Armenian": "\u0530-\u058f",
}
_PATTERNS = {name: re.compile(f"[{characters}]") for name, characters in _SCRIPTS.items()}
_BEYOND_LATIN = re.compile("[\u0370-\u1fff\u3040-\ud7ff]")
_MARKED = {  # letters that only one language of a script has; else the other name
    "Cyrillic": (re.compile("[іїєґІЇЄҐ]"), "Ukrainian", "Russian"),
    "Arabic": (re.compile("[پچژگ]"), "Persian or Urdu", "Arabic"),
}
_COMMON_WORDS = {
    "English": "a the of and to in is that it for was on are as with his they be at this have from or had by not but "
    "what all were we when your can there an which their if will how you i my me she he do would could should about "
    "has been",
    "German": "der die und das den von zu ist mit nicht ein eine auf sich für dem des auch es als an er wie im "
    "werden bei oder sind aus wird nach um am ich sie haben hat dass zum zur kann über einer einen wir ihr",
    "French": "le la les des et est en un une du que dans pour qui sur pas plus par il au ce avec se je vous sont ou "
    "nous elle cette leur ses mais comme être aux été peut très c'est l'on d'une",
    "Spanish": "el la los las de y que en un una por con para es del se no lo como más su al pero sus este esta son "
    "también ha o si muy está puede ser sobre entre cuando hay",
    "Portuguese": "o os as e que em um uma por com para é do da dos das no na não se mais como ao mas seu sua são "
    "também foi ou pode ser você está pelo pela isso muito",
    "Italian": "il lo gli e di che in un una per con è del della dei delle non si al alla come più ma sono anche nel "
    "nella questo questa le ha o può essere dal da",
    "Dutch": "de het een en van in is dat op te zijn met voor niet aan er die ook als bij maar of om uit wordt door "
    "naar heeft je ik kan worden deze dit over",
    "Swedish": "och att det som en på är av för med den till inte om ett har de jag kan var från eller men vi så man",
    "Danish or Norwegian": "og at det som en på er af av for med den til ikke om et har de jeg kan var fra eller men "
    "vi så man",
    "Polish": "na się nie że jest jak po za od przez dla są czy ale co jego być może które który",
    "Turkish": "ve bir bu için ile da de ne çok olarak daha olan gibi en kadar var sonra değil ama veya her",
    "Indonesian or Malay": "yang dan di untuk dengan dari ini itu pada adalah tidak dalam akan atau ke juga dapat "
    "oleh saya",
    "Vietnamese": "của và là có được cho không trong một những các để với này người khi đã về từ tôi",
    "Romanian": "și în de la care pe cu nu este un o din pentru mai sunt ca să se că sau prin",
    "Finnish": "ja on ei se että oli hän mutta ovat kun kuin niin tai myös joka sen",
    "Hungarian": "az és hogy nem egy ez van meg azt csak vagy mint volt de",
    "Czech": "se na je že jako ale jsou pro nebo při které když také jeho než podle byl",
}
_WORD_SETS = {language: frozenset(words.split()) for language, words in _COMMON_WORDS.items()}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(name for name, words in _WORD_SETS.items() if word in words)
    for word in frozenset().union(*_WORD_SETS.values())
}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def language_of(conversation: Conversation) -> str:
    """The language of the answers; of the whole row where they are short."""
    answers = " ".join(turn.content[:_LOOKED_AT] for _, turn in answers_of(conversation))[:_LOOKED_AT]
    found = guess_language(answers)
    if found != UNKNOWN or len(answers) >= _LOOKED_AT // 2:
        return found
    return guess_language(" ".join([turn.content[:_LOOKED_AT] for turn in conversation.turns])[: 2 * _LOOKED_AT])


def guess_language(text: str) -> str:
    """The language of a text, or ``unknown``, as for code, numbers, names and a few words."""
    if not text.isascii() and _BEYOND_LATIN.search(text):
        letters = sum(map(str.isalpha, text))
        for name, pattern in _PATTERNS.items():
            count = len(pattern.findall(text))
            least = 0.1 if name == "Japanese" else 0.4  # the rest are Han
            if letters >= 4 and count >= max(2, least * letters):
                marked = _MARKED.get(name)
                return name if marked is None else marked[1] if marked[0].search(text) else marked[2]
    words = _WORD.findall(text.lower().replace("’", "'"))
    if len(words) < _LEAST_WORDS or sum(map(len, words)) < _LEAST_LETTERS:
        return UNKNOWN
    hits = Counter(chain.from_iterable(map(_LANGUAGES_OF.get, words, repeat(()))))
    best = hits.most_common(2)
    if not best or best[0][1] < max(2, _LEAST_SHARE * len(words)):
        return UNKNOWN
    return best[0][0] if len(best) == 1 or best[0][1] > best[1][1] else UNKNOWN
