"""Answers that decline the task, or speak as a chat service where an answer was asked for."""

from __future__ import annotations

import re

from tokenclean.checks.findings import Spot, answers_of
from tokenclean.pool.conversation import Conversation

_BEGINNING = 400  # characters: a refusal says so at once

_UNABLE = r"(?:can(?:not|'t| not)|(?:am|'m) (?:not able|unable|not capable|not programmed|not designed|not allowed)|won't|do(?: not|n't) have)"
_SERVICE = (
    r"(?:assist|help|fulfil|comply|complete|provide|generat|answer|respond|access|brows|process|discuss|engage|perform|"
    r"creat|writ|offer|support|continue|do that|predict|see|view|listen|feel|experience|personal|the ability|real-?time|"
    r"enough|sufficient|a physical|physical)"
)
_PATTERNS = (
    rf"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{{0,80}}?\b(?:i|my)\b[^.!?\n]{{0,40}}?\b(?:{_UNABLE}|not|no|unable)\b",
    rf"\b(?:i am|i'm|i) (?:only |just )?an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{{0,60}}?\b(?:can(?:not|'t)|not able|unable|do(?: not|n't))\b",
    rf"^\W*(?:i am|i'm|we are|we're)?(?: very| so| really)? ?(?:sorry|afraid|i apologi[sz]e)\b[^.!?\n]{{0,60}}?\b(?:i|we) {_UNABLE}(?: be able)?(?: to)? ?(?:\w+ ){{0,2}}?{_SERVICE}",
    rf"^\W*(?:unfortunately, )?i {_UNABLE}(?: to)? ?(?:\w+ )?(?:assist|help|fulfil|comply|complete|provide|generat|answer|respond|access|brows|process|discuss|engage|perform) ?\w* ?(?:you )?(?:with|to|in|your|this|that|the|any|such|information|explicit|harmful|external|request)\b",
    r"^\W*(?:i am|i'm) sorry[,.!]? (?:but )?(?:i|we) (?:do(?: not|n't)|did(?: not|n't)) (?:understand|have (?:enough|sufficient|access|any information))",
    r"^\W*(?:no ?output|no ?input|this (?:task|instruction|question) (?:cannot|can't) be (?:completed|done|answered|performed)\b.*)\W*$",
    r"^\W*lo siento,? (?:pero )?(?:no puedo|como (?:una? )?(?:ia|modelo|inteligencia))",
    r"\bcomo (?:una? )?(?:ia|modelo de lenguaje|inteligencia artificial)\b[^.!?\n]{0,60}?\bno (?:puedo|tengo)\b",
    r"\b(?:als (?:ki|ein(?:e)? (?:ki|künstliche intelligenz|sprachmodell)[\w-]*))\b[^.!?\n]{0,60}?\b(?:nicht|kein\w*)\b",
    r"^\W*(?:es )?tut mir leid,? (?:aber )?[^.!?\n]{0,40}?\bkann (?:ich )?[^.!?\n]{0,60}?nicht\b",
    r"^\W*(?:je suis désolée?|désolée?),? [^.!?\n]{0,30}?\bje ne (?:peux|suis) pas\b",
    r"\ben tant qu(?:e |')(?:ia|modèle de langage|intelligence artificielle)\b[^.!?\n]{0,60}?\bje ne (?:peux|suis|dispose)\b",
    r"^\W*(?:很抱歉|抱歉|对不起)[^。！？\n]{0,20}?(?:我(?:无法|不能|不可以)|作为(?:一个|一名)?(?:AI|人工智能|语言模型))",
    r"作为(?:一个|一名|一款)?(?:AI|人工智能|(?:大型)?语言模型)[^。！？\n]{0,20}?(?:无法|不能|没有)",
)
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)
_HINT = re.compile(
    r"sorry|afraid|apologi|\ba\.?i\b|artificial|language model|^\W*(?:unfortunately, )?i (?:can|am|do|won)|^\W*no|"
    r"this (?:task|instr|quest)|lo siento|como|als ki|als ein|leid|désol|en tant|抱歉|对不起|作为",
    re.IGNORECASE,
)


def find_refusal(conversation: Conversation) -> Spot | None:
    """Answers that begin with a refusal in one of the usual wordings, in English, Spanish, German, French, Chinese."""
    for number, turn in answers_of(conversation):
        beginning = turn.content[:_BEGINNING].replace("’", "'")
        if _HINT.search(beginning) and (match := _REFUSAL.search(beginning)):
            return Spot("declines the task", number, *match.span())
    return None
