"""Tokenizers of every component and of many combinations, built by the Rust library itself; the same every time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tests.parity.tokenizer_texts import CORPUS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

PATTERNS: dict[str, str] = {
    "gpt2": GPT2,
    "cl100k": CL100K,
    "o200k": O200K,
    "bloom": BLOOM,
    "deepseek": DEEPSEEK,
    "clip": CLIP,
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s++",
    "words": r"\w+|[^\w\s]+",
    "lookaround": r"(?<=\p{Ll})(?=\p{Lu})",
    "edges": r"\b",
    "empty": r"x*",
    "lines": r"^.|.$",
    "posix": r"[[:alpha:]]+|[[:digit:]]|[^[:^space:]]",
    "properties": r"\p{Letter}|\P{L}\p{^N}|\h|\D\d|\S\W",
    "classes": r"[a-c&&[^b]]|[]x]|[x\-z]|[\]é-]|[^\n-\r]{2}?",
    "escapes": r"\x41|\u00e9|\x{1F600}|\t|\101|\.|\/",
    "atomic": r"(?>a|ab)c|(?<name>b)+?|(?#comment)(?i)É",
    "intervals": r"a{,2}b|l{2}|o{1,}?|e{2,3}+",
}
"""Patterns that published tokenizers have, and one for each thing that a pattern can have."""

BEHAVIORS = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")


@cache
def charsmap() -> str:
    """The table of NFKC with NMT rules that SentencePiece compiles into its models, in base64."""
    import base64

    from pywebml.tokenization.sentencepiece import read_model
    from tests.parity.sentencepiece_models import trained

    return base64.b64encode(read_model(trained("unigram", "nmt_nfkc_cf"), "test").charsmap).decode()


def normalizer_zoo() -> dict[str, Any]:
    """Every normalizer, and combinations of them."""
    bert = {
        f"bert {flags}": normalizers.BertNormalizer(*flags)
        for flags in itertools.product((True, False), (True, False), (None, True, False), (True, False))
    }
    simple: dict[str, Any] = {
        "none": None,
        "nfc": normalizers.NFC(),
        "nfd": normalizers.NFD(),
        "nfkc": normalizers.NFKC(),
        "nfkd": normalizers.NFKD(),
        "lowercase": normalizers.Lowercase(),
        "strip accents": normalizers.StripAccents(),
        "strip": normalizers.Strip(),
        "strip left": normalizers.Strip(left=True, right=False),
        "strip right": normalizers.Strip(left=False, right=True),
        "nmt": normalizers.Nmt(),
        "prepend": normalizers.Prepend("▁"),
        "prepend several": normalizers.Prepend("é▁"),
        "byte level": normalizers.ByteLevel(),
        "replace": normalizers.Replace(" ", "▁"),
        "replace by nothing": normalizers.Replace("l", ""),
        "replace by more": normalizers.Replace("e", "漢字"),
        "replace spaces": normalizers.Replace(Regex(r"\s+"), " "),
        "replace quotes": normalizers.Replace(Regex(r"``|''|[“”]"), '"'),
        "precompiled": normalizers.Precompiled(_bytes(charsmap())),
    }
    mixed = {
        "llama": ["prepend", "replace"],
        "albert": ["replace quotes", "nfkd", "strip accents", "lowercase", "precompiled"],
        "xlnet": ["nfkd", "strip accents", "lowercase", "replace spaces", "strip"],
        "t5": ["precompiled", "strip right", "replace spaces"],
        "byte nfc": ["nfc", "byte level"],
        "everything": ["nmt", "nfkc", "lowercase", "replace by more", "strip", "nfd", "prepend several"],
        "taken apart and put together": ["nfkd", "nfkc", "nfd", "nfc"],
    }
    sequences = {name: normalizers.Sequence([simple[step] for step in steps]) for name, steps in mixed.items()}
    return {**simple, **sequences, **bert}


def _bytes(encoded: str) -> bytes:
    import base64

    return base64.b64decode(encoded)


def pre_tokenizer_zoo() -> dict[str, Any]:
    """Every pre-tokenizer, and combinations of them."""
    splits = {
        f"split {name}": pre_tokenizers.Split(Regex(pattern), BEHAVIORS[index % len(BEHAVIORS)], index % 3 == 2)
        for index, (name, pattern) in enumerate(PATTERNS.items())
    }
    published = {
        f"split {name} isolated": pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
        for name in ("gpt2", "cl100k", "o200k", "bloom", "deepseek", "clip")
    }
    behaviors = {
        f"split at e {behavior} {invert}": pre_tokenizers.Split("e", behavior, invert)
        for behavior in BEHAVIORS
        for invert in (False, True)
    }
    simple: dict[str, Any] = {
        "none": None,
        "bert": pre_tokenizers.BertPreTokenizer(),
        "whitespace": pre_tokenizers.Whitespace(),
        "whitespace split": pre_tokenizers.WhitespaceSplit(),
        "delimiter": pre_tokenizers.CharDelimiterSplit("l"),
        "digits": pre_tokenizers.Digits(individual_digits=False),
        "single digits": pre_tokenizers.Digits(individual_digits=True),
        "scripts": pre_tokenizers.UnicodeScripts(),
        "fixed": pre_tokenizers.FixedLength(3),
        "split nowhere": pre_tokenizers.Split("", "isolated"),
        **{f"punctuation {behavior}": pre_tokenizers.Punctuation(behavior) for behavior in BEHAVIORS},
        **{
            f"byte level {prefix} {regex}": pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
            for prefix in (False, True)
            for regex in (False, True)
        },
        **{
            f"metaspace {scheme} {split}": pre_tokenizers.Metaspace("▁", scheme, split)
            for scheme in ("always", "first", "never")
            for split in (False, True)
        },
    }
    sequence = pre_tokenizers.Sequence
    mixed = {
        "words and punctuation": sequence([simple["whitespace split"], simple["punctuation isolated"]]),
        "llama 3": sequence([published["split cl100k isolated"], simple["byte level False False"]]),
        "deepseek": sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                published["split deepseek isolated"],
                simple["byte level False False"],
            ]
        ),
        "late metaspace": sequence([simple["single digits"], simple["metaspace first True"]]),
        "late prefix": sequence([simple["whitespace split"], simple["byte level True True"]]),
        "bytes first": sequence([simple["byte level True False"], simple["fixed"]]),
        "scripts and spaces": sequence([simple["whitespace split"], simple["scripts"], simple["digits"]]),
    }
    return {**simple, **splits, **published, **behaviors, **mixed}


def _pieces(seed: int, sizes: Sequence[int]) -> list[str]:
    """Pieces of the corpus, by frequency, all characters of ASCII among them."""
    counts: dict[str, int] = {}
    for text in CORPUS:
        for size in sizes:
            for start in range(len(text) - size + 1):
                piece = text[start : start + size]
                counts[piece] = counts.get(piece, 0) + 1
    ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
    rest = ordered[600:]
    chosen = ordered[:600] + random.Random(seed).sample(rest, min(600, len(rest)))
    return list(dict.fromkeys([*map(chr, range(33, 127)), *chosen]))


@cache
def model_zoo() -> dict[str, Any]:
    """Every model, with its options."""
    unknown = list(SPECIAL)
    words = [piece for piece in _pieces(1, (1, 2, 3, 5)) if not piece.isspace()]
    wordpiece = {
        token: index for index, token in enumerate(dict.fromkeys([*unknown, *words, *(f"##{w}" for w in words)]))
    }
    level = {token: index for index, token in enumerate(dict.fromkeys([*unknown, *words]))}
    found: dict[str, Any] = {
        "wordpiece": models.WordPiece(wordpiece, unk_token="[UNK]"),
        "wordpiece short": models.WordPiece(wordpiece, unk_token="[UNK]", max_input_chars_per_word=4),
        "wordpiece other prefix": models.WordPiece(
            {token.replace("##", "é@"): index for token, index in wordpiece.items()},
            unk_token="[UNK]",
            continuing_subword_prefix="é@",
        ),
        "wordlevel": models.WordLevel(level, unk_token="[UNK]"),
    }
    for name, options in _bpe_options().items():
        found[f"bpe {name}"] = _bpe(**options)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    scored = [(token, 0.0) for token in unknown]
    generator = random.Random(3)
    pieces = ["▁", *_pieces(4, (1, 2, 3, 6)), *(f"▁{piece}" for piece in _pieces(5, (2, 4)))]
    scored += [(piece, round(-generator.expovariate(0.2) - 1, 4)) for piece in dict.fromkeys(pieces)]
    found["unigram"] = models.Unigram(scored, unk_id=1, byte_fallback=False)
    found["unigram bytes"] = models.Unigram([*scored, *((token, -20.0) for token in byte_tokens)], 1, True)
    found["unigram ties"] = models.Unigram([(token, float(-len(token))) for token, _ in scored], 1, False)
    return found


def _bpe_options() -> dict[str, dict[str, Any]]:
    return {
        "plain": {},
        "unknown": {"unk_token": "[UNK]"},
        "fused": {"unk_token": "[UNK]", "fuse_unk": True},
        "bytes": {"unk_token": "[UNK]", "byte_fallback": True},
        "bytes fused": {"unk_token": "[UNK]", "byte_fallback": True, "fuse_unk": True},
        "some bytes": {"unk_token": "[UNK]", "byte_fallback": True, "bytes_from": 0xC3},
        "ignore merges": {"unk_token": "[UNK]", "ignore_merges": True},
        "suffix": {"unk_token": "[UNK]", "end_of_word_suffix": "</w>"},
        "prefix": {"unk_token": "[UNK]", "continuing_subword_prefix": "##"},
        "prefix and bytes": {"continuing_subword_prefix": "##", "byte_fallback": True, "end_of_word_suffix": "é"},
        "byte level": {"byte_level": True},
    }


def _bpe(*, byte_level: bool = False, bytes_from: int = 0, **options: Any) -> Any:
    """A BPE whose merges are chosen at random, so that ranks and lengths are as unlike as can be."""
    generator = random.Random(repr(sorted(options.items())))
    prefix = options.get("continuing_subword_prefix", "")
    suffix = options.get("end_of_word_suffix", "")
    singles = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else _pieces(6, (1,))
    if byte_level:
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        texts = ["".join(word for word, _ in to_bytes.pre_tokenize_str(text)) for text in CORPUS]
    else:
        singles = [one for one in singles if one not in "éÉz"]
        texts = list(CORPUS)
    tokens = list(dict.fromkeys([*singles, *(prefix + one for one in singles)]))
    tokens += [token + suffix for token in tokens] if suffix else []
    merges: list[tuple[str, str]] = []
    known = set(tokens)
    starts = [token for token in tokens if not token.startswith(prefix) or not prefix]
    for _ in range(700):
        text = generator.choice(texts)
        if len(text) < 4:
            continue
        at = generator.randrange(len(text) - 3)
        size = generator.randint(1, 3)
        left = (text[at : at + size]) if generator.random() < 0.6 else prefix + text[at : at + size]
        right = prefix + text[at + size : at + size + generator.randint(1, 2)]
        if suffix and generator.random() < 0.3:
            right += suffix
        made = left + right[len(prefix) :]
        if left in known and right in known and (left, right) not in merges:
            merges.append((left, right))
            known.add(made)
            tokens.append(made)
    tokens = list(dict.fromkeys([*SPECIAL, *tokens, *starts]))
    if options.get("byte_fallback"):
        tokens += [f"<0x{byte:02X}>" for byte in range(bytes_from, 256)]
    vocab = {token: index for index, token in enumerate(tokens)}
    return models.BPE(vocab, merges, **options)


def processor_zoo() -> dict[str, Any]:
    """Every post-processor, and combinations of them."""
    cls, sep = ("[CLS]", 2), ("[SEP]", 3)
    tokens = [("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)]
    found: dict[str, Any] = {
        "none": None,
        "bert": processors.BertProcessing(sep, cls),
        "roberta": processors.RobertaProcessing(sep, cls),
        "roberta plain": processors.RobertaProcessing(sep, cls, trim_offsets=False, add_prefix_space=False),
        "roberta trimming": processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False),
        "byte level": processors.ByteLevel(trim_offsets=True),
        "byte level plain": processors.ByteLevel(trim_offsets=False),
        "template": processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=tokens
        ),
        "template reversed": processors.TemplateProcessing(
            "$A:3 [MASK]:5", "[CLS]:1 $B:2 [SEP]:4 [MASK] $A:7 [SEP]", special_tokens=tokens
        ),
        "template of one": processors.TemplateProcessing("[CLS] $A", "$A $B", special_tokens=tokens),
    }
    found["trimmed template"] = processors.Sequence([found["byte level"], found["template"]])
    found["template trimmed"] = processors.Sequence([found["template"], found["byte level"]])
    found["bert twice"] = processors.Sequence([found["bert"], found["bert"]])
    return found


def decoder_zoo() -> dict[str, Any]:
    """Every decoder, and combinations of them."""
    found: dict[str, Any] = {
        "none": None,
        "byte level": decoders.ByteLevel(),
        "wordpiece": decoders.WordPiece(),
        "wordpiece plain": decoders.WordPiece(prefix="é@", cleanup=False),
        **{
            f"metaspace {scheme} {split}": decoders.Metaspace("▁", scheme, split)
            for scheme in ("always", "first", "never")
            for split in (True, False)
        },
        "bpe": decoders.BPEDecoder(),
        "ctc": decoders.CTC("[PAD]", "|", True),
        "ctc plain": decoders.CTC("l", "e", False),
        "fuse": decoders.Fuse(),
        "byte fallback": decoders.ByteFallback(),
        "replace": decoders.Replace("▁", " "),
        "replace pattern": decoders.Replace(Regex(r"[aeiou]+|^\s"), "<>"),
        "strip": decoders.Strip(" ", 1, 0),
    }
    sequence = decoders.Sequence
    found["llama"] = sequence([found["replace"], found["byte fallback"], found["fuse"], found["strip"]])
    found["long strip"] = sequence([found["fuse"], decoders.Strip("e", 2, 0)])
    return found


def added_zoo() -> list[list[Any]]:
    """Lists of added tokens: with every option, alone and together."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    contents = ("<m>", "hello", "ell", "[SEP]", "world ", " the", "ÉÈ", "<mask>", "e", "漢")
    generator = random.Random(11)
    found: list[list[Any]] = [[]]
    for _ in range(24):
        chosen = generator.sample(contents, generator.randint(1, 4))
        found.append([AddedToken(one, **{flag: generator.random() < 0.5 for flag in flags}) for one in chosen])
    return found


def built(normalizer: Any, pre_tokenizer: Any, model: Any, processor: Any, decoder: Any, added: list[Any]) -> Any:
    """A tokenizer of the Rust library."""
    rust = tokenizers.Tokenizer(model)
    for name, component in (
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", processor),
        ("decoder", decoder),
    ):
        if component is not None:
            setattr(rust, name, component)
    rust.add_special_tokens([token for token in SPECIAL if rust.token_to_id(token) is not None])
    rust.add_tokens(added)
    # Read back, so that it is no more than what its file says.
    return tokenizers.Tokenizer.from_str(rust.to_str())


def zoo() -> Iterator[tuple[str, Any]]:
    """Names and tokenizers: every component at least with every model's kind, everything else drawn at random."""
    parts: list[dict[str, Any]] = [normalizer_zoo(), pre_tokenizer_zoo(), model_zoo(), processor_zoo(), decoder_zoo()]
    added = added_zoo()
    generator = random.Random(2026)
    rows: list[list[str]] = []
    # Each component of each kind comes at least so often, next to others at random.
    for kind, part in enumerate(parts):
        for name in part:
            for _ in range(_REPEATS[kind]):
                row = [generator.choice(list(other)) for other in parts]
                row[kind] = name
                rows.append(row)
    for row in rows:
        chosen = [part[name] for part, name in zip(parts, row, strict=True)]
        index = generator.randrange(len(added)) if generator.random() < 0.5 else 0
        normalizer, pre_tokenizer, model, processor, decoder = chosen
        rust = built(normalizer, pre_tokenizer, model, processor, decoder, added[index])
        yield " + ".join([*row, f"added {index}"]), rust


_REPEATS = (6, 4, 16, 12, 8)


def written(rust: Any) -> bytes:
    """The tokenizer's file."""
    document: str = rust.to_str()
    assert json.loads(document)["version"] == "1.0"
    return document.encode()
