"""The language of a text by script and common words."""

from __future__ import annotations

import pytest

from tokenclean.checks.languages import UNKNOWN, guess_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The harbour was built by two brothers who came from the north.", "English"),
        ("Der Hafen wurde von zwei Brüdern gebaut, die aus dem Norden kamen.", "German"),
        ("Le port a été construit par deux frères qui sont venus du nord.", "French"),
        ("El puerto fue construido por dos hermanos que llegaron del norte.", "Spanish"),
        ("O porto foi construído por dois irmãos que vieram do norte.", "Portuguese"),
        ("Il porto è stato costruito da due fratelli che sono venuti dal nord.", "Italian"),
        ("De haven is gebouwd door twee broers die uit het noorden kwamen.", "Dutch"),
        ("Гавань построили два брата, которые пришли с севера.", "Russian"),
        ("Гавань збудували двоє братів, які прийшли з півночі і лишилися.", "Ukrainian"),
        ("港口是由两个从北方来的兄弟建造的。", "Chinese"),
        ("港は北から来た二人の兄弟によって建てられました。", "Japanese"),
        ("항구는 북쪽에서 온 두 형제가 지었습니다.", "Korean"),
        ("بنى الميناء شقيقان جاءا من الشمال.", "Arabic"),
        ("बंदरगाह दो भाइयों ने बनाया था।", "Hindi"),
        ("Το λιμάνι χτίστηκε από δύο αδέρφια.", "Greek"),
        ("42", UNKNOWN),
        ("", UNKNOWN),
        ("x = [f(y) for y in z]", UNKNOWN),
        ("Berlin, Hamburg, Köln, München", UNKNOWN),
    ],
)
def test_languages(text: str, language: str):
    assert guess_language(text) == language
