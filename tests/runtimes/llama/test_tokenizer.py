"""Tokenizers through llama.cpp itself: the ids are those of the `tokenizers` library, line by line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from models import assets_of, model_of
from test_families import lower, random_model

from octavo.core.architecture import decoder_spec
from octavo.errors import BadInput
from octavo.runtimes.llama.session import LlamaSession
from octavo.runtimes.llama.tokenizer import CONTRACTIONS, TAIL, read_tokenizer
from octavo.runtimes.llamacpp import LlamaCpp

HARD = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "a", " a", "  a", "a ", "a  b", "a   b    c",
    "Hello, world!", "don't we'll I'VE they're it's", "x=1;y=2.5e-3", "12345678 1,234", "naïve café",
    "cafe\u0301 e\u0301\u0302", "日本語のテキスト", "你好，世界", "한국어 문장", "Привет, мир", "مرحبا بالعالم",
    "🙂", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "a🙂b", "\u200b zero\u200dwidth", "\ufeffbom", "\u00a0nbsp\u3000wide",
    "tab\tand\x0bvertical\x0c", "nul\x00inside", "\x7f\x80\x9f\xff", "\U0010ffff\ue000", "___---***", "((([[[{{{",
    "CamelCaseWords andSNAKE_case", "▁▁ already ▁", "<0x0A>", "..............................", "aaaaaaaaaaaaaaaaaaa",
    "<unk><s></s>", "<|bos|>in<|eos|> the", "text<s> more", "</s> after", "<|bos|", "< s>",
]  # fmt: skip


def lines(shared: Path) -> list[str]:
    """1,000 lines: the hard ones, every byte as a character, mixtures at random, then plain text."""
    rng = random.Random(0)
    found = HARD + [chr(byte) for byte in range(256)] + [f"x{chr(byte)}  y" for byte in range(128, 256)]
    while len(found) < 700:
        parts = [rng.choice(HARD[1:]) + rng.choice(["", " ", "  ", "\n"]) for _ in range(rng.randint(2, 5))]
        found.append("".join(parts))
    plain: list[str] = []
    for file in ("tinystories/stories_a.txt", "wikitext-2/test.txt", "octavo-tiny/test.txt"):
        text = (shared / "data/text" / file).read_text("utf-8").splitlines()
        plain += [line for line in text if line][:100]
    return (found + plain)[:1000]


@pytest.mark.parametrize("name", ["octavo-tiny-8m", "stories260K/hf", "stories3M/hf"])
def test_ids_are_those_of_the_source(name: str, shared: Path, tmp_path: Path) -> None:
    from models import from_directory
    from tokenizers import Tokenizer

    source = shared / "data/lm" / name
    theirs = Tokenizer.from_file(str(source / "tokenizer.json"))
    texts = lines(shared)
    assert len(texts) == 1000
    assert LlamaCpp().carry(from_directory(source)).notes == ()
    with LlamaSession(lower(from_directory(source), tmp_path / "m.gguf"), threads=1) as session:
        got = session.tokenize_many(texts, add_special=True, parse_special=True)
    want = [theirs.encode(text).ids for text in texts]
    different = [(text, a, b) for text, a, b in zip(texts, got, want, strict=True) if a != b]
    assert not different, f"{len(different)} of 1000 lines, first {different[0]}"


def trained(split: Any, normalizer: Any = None, ignore_merges: bool = False) -> dict[str, Any]:
    """A byte-level BPE of 512 tokens, trained here, that splits text in this way."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = split
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([Path(__file__).read_text("utf-8")] * 3, trainer)
    source: dict[str, Any] = json.loads(tokenizer.to_str())
    return source


def splits() -> dict[str, Any]:
    from tokenizers import Regex, pre_tokenizers

    def by(regex: str) -> Any:
        isolated = pre_tokenizers.Split(Regex(regex), "isolated")
        return pre_tokenizers.Sequence([isolated, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "smaug-bpe": by(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL),
        "qwen2": by(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL),
        "llama-bpe": by(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL),
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "smaug-bpe", "qwen2", "llama-bpe"])
def test_each_splitting_rule_is_llama_cpps(pre: str, shared: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = trained(splits()[pre], ignore_merges=pre == "llama-bpe")
    _, model = random_model("llama", {"vocab_size": 512})
    model = model_of(model.program.body, model.reader.values, assets={"tokenizer.json": json.dumps(source).encode()})
    path = lower(model, tmp_path / "m.gguf")
    assert LlamaCpp().read_back(path).value("tokenizer.ggml.pre") == pre
    texts = lines(shared)
    with LlamaSession(path, threads=1) as session:
        got = session.tokenize_many(texts, add_special=True, parse_special=True)
    theirs = Tokenizer.from_str(json.dumps(source))
    want = [theirs.encode(text).ids for text in texts]
    different = [(text, a, b) for text, a, b in zip(texts, got, want, strict=True) if a != b]
    assert not different, f"{len(different)} of 1000 lines, first {different[0]}"


def spec(vocab: int = 512) -> Any:
    config = {"model_type": "llama", "vocab_size": vocab, "hidden_size": 64, "intermediate_size": 64}
    return decoder_spec(config | {"num_hidden_layers": 1, "num_attention_heads": 4, "eos_token_id": 0})


def none_because(source: dict[str, Any]) -> str:
    found = read_tokenizer({"tokenizer.json": json.dumps(source).encode()}, spec())
    assert found.kind == "none"
    assert found.keys == {"tokenizer.ggml.model": "no_vocab", "tokenizer.ggml.eos_token_id": 0}, "where it ends stays"
    return found.notes[0]


def test_a_tokenizer_without_a_kind_is_left_out_and_noted(stories260k: Path, tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    odd = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    assert r"no splitting rule '\w+'" in none_because(trained(odd))
    assert "in front of the text" in none_because(trained(pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert "'WordPiece' model" in none_because({"model": {"type": "WordPiece", "vocab": {}}})
    source = json.loads((stories260k / "tokenizer.json").read_text())
    changed = source | {"normalizer": {"type": "Lowercase"}}
    assert "normaliser Lowercase" in none_because(changed)
    one_way = source["model"] | {"merges": [m for m in source["model"]["merges"] if m != ["▁th", "e"]]}
    assert "'▁the'" in none_because(source | {"model": one_way})
    assert "without a tokenizer.json" in read_tokenizer({}, spec()).notes[0]


def test_a_file_without_a_tokenizer_runs_on_ids(tmp_path: Path) -> None:
    import numpy as np

    _, model = random_model("llama", {})
    path = lower(model, tmp_path / "m.gguf")
    assert "tokenizer not carried" in LlamaCpp().carry(model).notes[0]
    with LlamaSession(path, threads=1) as session:
        assert not session.has_tokenizer
        logits, _ = session.step({"ids": np.array([[5, 6, 7]])})
        assert logits["logits"].shape == (1, 3, 320)


def test_special_tokens_and_templates_come_along(tiny8m: Path) -> None:
    assets = assets_of(tiny8m)
    config = json.loads(assets["tokenizer_config.json"]) | {"chat_template": "{{ messages }}"}
    generation = {"eos_token_id": [1, 7]}
    assets |= {
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(generation).encode(),
    }
    keys = read_tokenizer(assets, spec(4096)).keys
    ids = {key: keys[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": 0, "eos": 1, "eot": 7, "padding": 1}
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    padded = read_tokenizer(assets, spec(4100)).keys
    assert padded["tokenizer.ggml.tokens"][4096:] == ["[PAD4096]", "[PAD4097]", "[PAD4098]", "[PAD4099]"]
    assert padded["tokenizer.ggml.token_type"][4096:] == [5] * 4
    short = read_tokenizer(assets, spec(4000))
    assert len(short.keys["tokenizer.ggml.tokens"]) == 4000
    assert "96 tokens beyond" in short.notes[0]


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"model": {"type": "BPE"}}', b'{"model": 3}'])
def test_a_damaged_tokenizer_is_named(damage: bytes) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        read_tokenizer({"tokenizer.json": damage}, spec())
