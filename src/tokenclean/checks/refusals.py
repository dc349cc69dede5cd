"""Answers that decline the task, or say what an AI cannot do where an answer was asked for."""

from __future__ import annotations

import re

from tokenclean.checks.findings import Spot, answers_of
from tokenclean.pool.conversation import Conversation

_BEGINNING = 400  # characters: a refusal says so at once

_MODEL = r"an? (?:ai|artificial intelligence|(?:large )?language model)\b"
_CANNOT = r"(?:can(?:not|'t| not)|won't|do(?: not|n't) have|(?:am|'m) (?:not |un)(?:able|capable|programmed|allowed))"
_HELP = (
    r"(?:assist|help|fulfil|comply|complete|provide|generat|answer|respond|access|brows|process|discuss|engage|perform)"
)
_SERVICE = (
    rf"(?:{_HELP}|creat|writ|offer|support|continue|do that|predict|see|view|listen|feel|experience|personal|"
    r"the ability|real-?time|enough|sufficient|physical)"
)
_ENGLISH = (
    rf"\bas {_MODEL}[^.!?\n]{{0,80}}?\b(?:i|my)\b[^.!?\n]{{0,40}}?\b(?:{_CANNOT}|not|don't|no|unable|lack)\b",
    rf"\b(?:i am|i'm|i) (?:only |just )?{_MODEL}[^.!?\n]{{0,60}}?\b(?:{_CANNOT}|do(?: not|n't))\b",
    r"^\W*(?:i am|i'm|we are|we're)?(?: very| so| really)? ?(?:sorry|afraid|i apologi[sz]e)\b[^.!?\n]{0,60}?"
    rf"\b(?:i|we) ?{_CANNOT}(?: be able)?(?: to)? ?(?:\w+ ){{0,2}}?{_SERVICE}",
    rf"^\W*(?:unfortunately, )?i ?{_CANNOT}(?: to)? ?(?:\w+ )?{_HELP}\w* ?(?:you )?"
    r"(?:with|to|in|your|this|that|the|any|such|information|explicit|harmful|external|request)\b",
    r"^\W*(?:i am|i'm) sorry[,.!]? (?:but )?(?:i|we) (?:do|did)(?: not|n't) "
    r"(?:understand|have (?:enough|sufficient|access|any information))",
    r"^\W*(?:no ?output|no ?input)\W*$",
    r"^\W*this (?:task|instruction|question) (?:cannot|can't) be (?:completed|done|answered|performed)\b",
)
_OTHER = (
    r"^\W*lo siento,? (?:pero )?(?:no puedo|como (?:una? )?(?:ia|modelo|inteligencia))",
    r"\bcomo (?:una? )?(?:ia|modelo de lenguaje|inteligencia artificial)\b[^.!?\n]{0,60}?\bno (?:puedo|tengo)\b",
    r"\bals (?:ki|eine? (?:ki|künstliche intelligenz|sprachmodell))[\w-]*[^.!?\n]{0,60}?\b(?:nicht|kein\w*)\b",
    r"^\W*(?:es )?tut mir leid,? (?:aber )?[^.!?\n]{0,40}?\bkann (?:ich )?[^.!?\n]{0,60}?nicht\b",
    r"^\W*(?:je suis )?désolée?,? [^.!?\n]{0,30}?\bje ne (?:peux|suis) pas\b",
    r"\ben tant qu(?:e |')(?:ia|modèle de langage|intelligence artificielle)\b[^.!?\n]{0,60}?"
    r"\bje ne (?:peux|suis|dispose)\b",
    r"^\W*(?:很抱歉|抱歉|对不起)[^。！？\n]{0,20}?(?:我(?:无法|不能|不可以)|作为(?:一个|一名)?(?:AI|人工智能|语言模型))",
    r"作为(?:一个|一名|一款)?(?:AI|人工智能|(?:大型)?语言模型)[^。！？\n]{0,20}?(?:无法|不能|没有)",
)
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in (*_ENGLISH, *_OTHER)), re.IGNORECASE)
# One of these is in every refusal; to look for them is many times as fast.
_HINTS = (
    *("sorry", "afraid", "apolog", "an ai", "a ai", "artificial", "language model", "i can", "i am", "i'm", "i do"),
    *("i won", "noinput", "no input", "nooutput", "no output", "be completed", "be done", "be answered"),
    *("be performed", "lo siento", "como ", "leid", "als ki", "als ein", "désol", "en tant", "抱歉", "对不起", "作为"),
)


def find_refusal(conversation: Conversation) -> Spot | None:
    """Answers that begin with a refusal in one of the usual wordings, in English, Spanish, German, French, Chinese."""
    for number, turn in answers_of(conversation):
        beginning = turn.content[:_BEGINNING].replace("’", "'")
        small = beginning.lower()
        if any(hint in small for hint in _HINTS) and (match := _REFUSAL.search(beginning)):
            return Spot("declines the task", number, *match.span())
    return None
