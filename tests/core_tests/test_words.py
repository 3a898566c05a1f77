"""Words of any script, and ROUGE over them; Latin texts are scored as published."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.metrics import rouge_1_recall, rouge_l
from core.text.words import is_latin, is_spaceless, words, words_and_signs

LANGUAGES = {
    "chinese": "他出生在北京市第一区。",
    "japanese": "彼は東京で生まれました。",
    "korean": "그는 서울에서 태어났습니다.",
    "thai": "เขาเกิดที่กรุงเทพฯ",
    "lao": "ລາວເກີດຢູ່ວຽງຈັນ",
    "khmer": "គាត់កើតនៅភ្នំពេញ",
    "burmese": "သူသည်ရန်ကုန်မှာမွေးသည်။",
    "tibetan": "ཁོང་ལྷ་ས་ལ་སྐྱེས།",
    "hindi": "वह दिल्ली में पैदा हुआ था।",
    "tamil": "அவர் சென்னையில் பிறந்தார்.",
    "arabic": "وُلِدَ في القاهرة.",
    "persian": "او در تهران به‌دنیا آمد.",
    "hebrew": "הוּא נולד בירושלים.",
    "russian": "Он родился в Москве.",
    "greek": "Γεννήθηκε στην Αθήνα.",
    "georgian": "ის დაიბადა თბილისში.",
    "vietnamese": "Ông sinh ra ở Đà Nẵng.",
    "czech": "Žil v Říčanech.",
    "signs": "→ ∑ ≠",
}


@pytest.mark.parametrize("text", LANGUAGES.values(), ids=LANGUAGES)
def test_equal_texts_of_any_language_score_one_and_others_less(text: str) -> None:
    assert rouge_l(text, text).recall == rouge_l(text, text).f1 == 1.0
    assert rouge_1_recall(text, text) == 1.0
    for form in ("NFC", "NFD"):
        assert rouge_l(unicodedata.normalize(form, text), text).f1 == 1.0
    half = text[: len(text) // 2]
    assert 0.0 < rouge_l(half, text).recall < 1.0
    assert rouge_l("xyzzy", text).recall == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        pytest.param("他在上海", "他在北京", 2 / 4, id="characters"),
        pytest.param("Он жил в Москве", "Он родился в Москве", 3 / 4, id="words"),
        pytest.param("ОН РОДИЛСЯ", "он родился", 1.0, id="case"),
        pytest.param("他在IBM工作", "他 在 IBM 工作", 1.0, id="mixed"),
        pytest.param("他们 working", "他们 works", 1.0, id="stems-of-latin-words"),
        pytest.param("二〇二〇年 ２０２０", "二〇二〇年 2020", 1.0, id="wide-digits"),
        pytest.param("कि", "की", 0.0, id="a-mark-is-part-of-its-letter"),
        pytest.param("Montreal et Québec", "Montréal et Québec", 3 / 5, id="accents-as-published"),
    ],
)
def test_recall_by_hand(prediction: str, reference: str, recall: float) -> None:
    assert rouge_l(prediction, reference).recall == pytest.approx(recall)


@given(text=st.text("abz09_ -'éñü.,!?\n\t"))
def test_words_and_signs_of_latin_text_are_those_of_the_usual_pattern(text: str) -> None:
    assert words_and_signs(text) == re.findall(r"\w+|[^\w\s]", text)


@given(text=st.text())
def test_words_lose_nothing_but_spaces_and_joiners(text: str) -> None:
    kept = "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")
    assert "".join(words_and_signs(text)) == kept
    assert all(words(text))


def test_scripts_by_hand() -> None:
    assert words_and_signs("他在 IBM，1998年") == ["他", "在", "IBM", "，", "1998", "年"]
    assert words("ที่") == ["ที่"]  # a consonant with its two marks
    assert [is_spaceless(c) for c in "他。あアー〇ไA한д"] == [True] * 7 + [False] * 3
    assert is_latin("Žár, 12!") and is_latin("") and not is_latin("a он")
