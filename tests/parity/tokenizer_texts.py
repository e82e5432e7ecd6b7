"""Texts for tokenizers: ordinary ones, and characters that tokenizers are known to trip over."""

from __future__ import annotations

from hypothesis import strategies as st

CORPUS = (
    "hello world, the unaffable tokenizer's tokenization isn't finished; it'll be (mostly) done by 2026!",
    "Hello WORLD  The quick brown fox\tjumps over 13 lazy dogs.\r\n\r\nIt's 3.14159, we've said: \"don't\" — they'd "
    "agree.",
    "def tokenize(text: str) -> list[int]:\n    return [vocab[word] for word in text.split()]  # naïve\n",
    "Élève à l'école, ça coûte 1 234,56 €; ÀÉÎÕÜ straße ſtraſſe İstanbul ıssız",
    "Привет, мир! Как дела? Ελληνικά: Σίσυφος ς. שָׁלוֹם עוֹלָם مرحبا بالعالم ١٢٣",
    "漢字かな交じり文、東京は大きい。한국어 텍스트 각각 ｶﾀｶﾅ ㍿ ①②③ ﬁne ﬂow",
    "नमस्ते दुनिया สวัสดีชาวโลก 👩‍👩‍👧‍👦 🇩🇪 👍🏽 e\u0301a\u0323\u0301 \U0001d400\U0001d552 <m> [SEP] <mask> [MASK]",
    "▁hello▁world ▁▁the  ▁ end▁",
)
"""What the vocabularies of the zoo are made of."""

# Context-dependent case, marks that are reordered or not, Hangul, ideographs, joiners, direction marks, white space of
# every kind, what only some Unicode versions know, digits and letters of many scripts.
TROUBLE = (
    "ΣσςİıẞßǅŐÅĀſKÅﬁﬀ\u0301\u0308\u0316\u0334\u0345\u05b0\u05b4\u0655\u1dfb\u302e\u302f\u1bf2\U0001d165\U0001e944"
    "각ᄀ\u1161\u11a8漢字\u2f00\U0002f800かなガガﾞ゛ー\u200b\u200c\u200d\u200f\u202e\u2066\ufeff\ufffd\u00ad\u180e"
    "\t\n\r\x0b\x0c\x1c\x1f\x00\x7f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u2581▁"
    "\u08e2\u0897\u07fd\u32ff\U000105d2\u0307\U00011935\U00011930\U00016d67\ua7cb\U00010d50\U00016ea0\U0001f642\U0001f1e9"
    "०๑٣²½Ⅷⅷ①㍿ªºⓐ𝐀𝟗𑀀\u0600\u0903\u0e33\U000e0100\u1e9b\u0344\u0f73ΰ"
    "_-–—¿«»…$+<=>^`|~'\"#@%&*()[]{}.,!?;:/\\"
)
FRAGMENTS = (
    *(word for text in CORPUS for word in text.split(" ")),
    *("hello", "world", "unaffable", "the", "ell", "##ing", "[SEP]", "[CLS]", "[MASK]", "[UNK]", "[sep]", "<m>"),
    *("<mask>", "ÉÈ", "éè", " ", "  ", " the", "world ", "'s", "'S", "don't", "123", "4567", "\r\n", "\n\n", "e\u0301"),
)
MARKS = "\u0301\u0316\u0334\u0345\u05b0\u08d4\u08e1\u1b44\u1bf2\u1dfb\u302e\u302f\ua953\U0001d165\U0001d16d\U0001e944"
"""Marks with combining classes of all sizes, side by side."""

characters = st.one_of(
    st.text(st.sampled_from(MARKS), min_size=2, max_size=5),
    st.sampled_from(TROUBLE),
    st.characters(exclude_categories=["Cs"]),
    st.characters(min_codepoint=32, max_codepoint=126),
    st.characters(min_codepoint=0x80, max_codepoint=0x24F),
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), characters), max_size=24).map("".join)
"""Any text at all, none of them with half of a surrogate pair."""
