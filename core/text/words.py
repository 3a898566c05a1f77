"""Words of a text in any script. Imports no torch."""

import unicodedata

_SPACELESS = (
    "CJK ",
    "IDEOGRAPHIC ",
    "FULLWIDTH ",
    "HIRAGANA ",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "BOPOMOFO ",
    "YI ",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
)
"""How the names of their characters in Unicode begin, punctuation included."""


def is_spaceless(character: str) -> bool:
    """Whether a character is of a script that puts no space between words, such as Chinese, Japanese or Thai."""
    return unicodedata.name(character, "").startswith(_SPACELESS)


def is_latin(text: str) -> bool:
    """Whether all letters of a text are Latin, with accents or without; also if it has none."""
    return all(
        character.isascii() or unicodedata.name(character, "").startswith("LATIN ")
        for character in text
        if character.isalpha()
    )


def words_and_signs(text: str) -> list[str]:
    """Words, and signs between them one by one.

    A word is a run of letters and digits (and underscores). In a script without spaces each character is a word.
    Combining marks belong to what they follow, joiners without width to nothing.
    """
    found: list[str] = []
    continues, takes_marks = False, False
    for character in text:
        category = unicodedata.category(character)
        if category == "Cf":
            continue
        if category[0] == "M" and takes_marks:
            found[-1] += character
            continue
        is_of_word = character.isalnum() or character == "_"
        stands_alone = not is_of_word or is_spaceless(character)
        if continues and not stands_alone:
            found[-1] += character
        elif not character.isspace():
            found.append(character)
        continues = not stands_alone
        takes_marks = is_of_word
    return found


def words(text: str) -> list[str]:
    """Words of a text in a form in which equal words are equal: small letters, one form of each character."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    found = words_and_signs(unicodedata.normalize("NFKC", folded))
    return [word for word in found if word[0].isalnum()]
