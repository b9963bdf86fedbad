"""A `tokenizer.json` as GGUF's tokenizer keys: byte-level BPE → "gpt2", SentencePiece-like BPE → "llama", else "none".

llama.cpp has the splitting regexes in code, chosen by the name in `tokenizer.ggml.pre`; so a byte-level BPE is carried
only when its own regex is one of those. A tokenizer that llama.cpp would not reproduce is not written at all: the file
then says "no_vocab" (llama.cpp's word for none), works on token ids, and the reason is in the notes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from octavo.core.architecture import DecoderSpec
from octavo.errors import BadInput
from octavo.runtimes.llama.merges import merge_scores

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type
SPACE = "▁"
END_KEYS = ("eos", "eot", "eom")  # the keys tokenizer.ggml.X_token_id that end a text
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (how the text is split, whether whole words skip the merges) → tokenizer.ggml.pre, as in llama.cpp's llama-vocab.cpp.
SPLITS = {
    ("gpt-2", False): "gpt-2",
    ("digits + gpt-2", False): "smollm",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL, True): "llama-bpe",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL, False): "smaug-bpe",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL, False): "qwen2",
    (TEKKEN, True): "tekken",
}


@dataclass(frozen=True)
class Tokenizer:
    """`keys`: the metadata, by its full key. `kind`: gpt2, llama or none. `notes`: what is not carried, and why."""

    kind: str
    keys: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()


class NoKind(Exception):
    """llama.cpp has no tokenizer that gives the same ids; the message says why."""


def read_tokenizer(assets: dict[str, bytes], spec: DecoderSpec) -> Tokenizer:
    """Translate the model's tokenizer. Raises BadInput when tokenizer.json is damaged."""
    config = _json(assets, "tokenizer_config.json") or {}
    source = _json(assets, "tokenizer.json")
    chat = _chat_template(assets, config)
    try:
        if source is None:
            raise NoKind("the model came without a tokenizer.json")
        kind, keys, notes = _translate(source, spec)
    except NoKind as reason:
        keys = {"tokenizer.ggml.model": "no_vocab"} | _bare_ends(_json(assets, "generation_config.json") or {}, spec)
        return Tokenizer("none", keys | chat, (f"tokenizer not carried: {reason}.",))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadInput(f"tokenizer.json: damaged ({type(error).__name__}: {error}).") from error
    tokens = keys["tokenizer.ggml.tokens"]
    keys |= _special(source, config, _json(assets, "generation_config.json") or {}, spec, tokens) | chat
    return Tokenizer(kind, keys, notes)


def _translate(source: dict[str, Any], spec: DecoderSpec) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    model = source["model"]
    if model.get("type") != "BPE":
        raise NoKind(f"a '{model.get('type')}' model (llama.cpp's kinds here are made from BPE)")
    unwanted = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    if unwanted:
        raise NoKind(f"BPE with {', '.join(unwanted)}")
    normalizers, splitters = _flat(source.get("normalizer")), _flat(source.get("pre_tokenizer"))
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if any(step["type"] == "ByteLevel" for step in splitters):
        keys, notes = _byte_level(model, normalizers, splitters, merges)
        kind = "gpt2"
    elif model.get("byte_fallback"):
        keys, notes = _sentencepiece(model, source, normalizers, splitters, merges)
        kind = "llama"
    else:
        raise NoKind("BPE that works neither on bytes nor with a byte fallback")
    tokens, types, more = _vocabulary(source, kind, spec)
    keys |= {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if kind == "llama":
        scores = keys.pop("scores")
        keys["tokenizer.ggml.scores"] = [float(scores.get(token, 0.0)) for token in tokens]
    return kind, keys, notes + more


def _byte_level(
    model: dict[str, Any], normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]], merges: list[Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keys and notes of a byte-level BPE."""
    kinds = [step["type"] for step in normalizers]
    if any(kind != "NFC" for kind in kinds):
        raise NoKind(f"byte-level BPE after {', '.join(kinds)}")
    notes: tuple[str, ...] = ()
    if kinds:
        notes += ("llama.cpp does not normalise text to NFC: ids differ for text that is not in NFC.",)
    split, last = _split(splitters[:-1]), splitters[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise NoKind("byte-level BPE that puts a space in front of the text")
    if last.get("use_regex", True):
        split = {"": "gpt-2", "digits": "digits + gpt-2"}.get(split, f"{split}, then GPT-2's regex")
    pre = SPLITS.get((split, bool(model.get("ignore_merges"))))
    if pre is None:
        raise NoKind(f"llama.cpp has no splitting rule '{split}' (ignore_merges={bool(model.get('ignore_merges'))})")
    if pre == "tekken":
        notes += ("llama.cpp's splitting rule 'tekken' treats letters with combining marks differently.",)
    return {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": [" ".join(pair) for pair in merges]}, notes


def _split(steps: list[dict[str, Any]]) -> str:
    """The splitting rule before the byte-level step: a regex, 'digits', or '' for none."""
    if not steps:
        return ""
    step = steps[0]
    if len(steps) == 1 and step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    isolated = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    if len(steps) == 1 and step["type"] == "Split" and "Regex" in step["pattern"] and isolated:
        return str(step["pattern"]["Regex"])
    raise NoKind(f"llama.cpp has no splitting rule for {json.dumps(steps, ensure_ascii=False)[:200]}")


def _sentencepiece(
    model: dict[str, Any],
    source: dict[str, Any],
    normalizers: list[dict[str, Any]],
    splitters: list[dict[str, Any]],
    merges: list[Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keys and notes of a BPE over characters with a byte fallback; scores stand in for the order of the merges."""
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
    if missing:
        raise NoKind(f"its byte fallback lacks {len(missing)} of 256 bytes")
    prefix, notes = False, []
    spaced = False
    for step in normalizers:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            spaced = True
        else:
            raise NoKind(f"the normaliser {step['type']}")
    for step in splitters:
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            spaced, prefix = True, prefix or scheme != "never"
            if scheme != "never":
                notes.append("llama.cpp puts a space also in front of text that begins with one.")
            if step.get("split", True) and any(SPACE in token[1:] for token in model["vocab"]):
                raise NoKind("words are split at spaces, and some tokens hold one inside")
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "} and spaced):
            raise NoKind(f"the splitting rule {step['type']}")
    if not spaced:
        raise NoKind("spaces are not written as ▁")
    added = {token["content"] for token in source.get("added_tokens") or ()}
    scores, disagreeing = merge_scores(model["vocab"], merges, added)
    if disagreeing:
        raise NoKind(
            f"{len(disagreeing)} tokens (such as {disagreeing[0]!r}) have merges that llama.cpp, which merges by the "
            "score of the result, would do in another order"
        )
    return {"tokenizer.ggml.add_space_prefix": prefix, "scores": scores}, tuple(notes)


def _vocabulary(source: dict[str, Any], kind: str, spec: DecoderSpec) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Token texts and types by id, padded to the size of the embedding."""
    model, notes = source["model"], []
    by_id = {index: token for token, index in model["vocab"].items()}
    types = {index: BYTE if kind == "llama" and _is_byte(token) else NORMAL for index, token in by_id.items()}
    for token in source.get("added_tokens") or ():
        by_id[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
        if token.get("lstrip") or token.get("rstrip"):
            notes.append(f"llama.cpp may not strip the spaces beside {token['content']!r}.")
    if kind == "llama" and model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    beyond = sum(index >= spec.vocab_size for index in by_id)
    if beyond:
        notes.append(f"{beyond} tokens beyond the embedding's {spec.vocab_size} rows are left out.")
    texts = [by_id.get(index, f"[PAD{index}]") for index in range(spec.vocab_size)]
    return texts, [types.get(index, UNUSED) for index in range(spec.vocab_size)], tuple(notes)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _special(
    source: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    spec: DecoderSpec,
    tokens: list[str],
) -> dict[str, Any]:
    """Ids of the special tokens and whether text gets them in front and behind."""
    ids = source["model"]["vocab"] | {token["content"]: token["id"] for token in source.get("added_tokens") or ()}
    first, last = _template(source.get("post_processor"), ids)

    def configured(name: str) -> int | None:
        value = config.get(f"{name}_token")
        return ids.get(value["content"] if isinstance(value, dict) else value) if value else None

    def pick(*candidates: int | None) -> int | None:
        return next((int(c) for c in candidates if c is not None and 0 <= int(c) < len(tokens)), None)

    ends = _ends(generation, spec)
    bos = pick(first, configured("bos"), spec.bos)
    eos = pick(last, configured("eos"), *ends)
    turn = pick(*(end for end in ends if end != eos))
    unknown = pick(ids.get(str(source["model"].get("unk_token"))))
    named = {"bos": bos, "eos": eos, "eot": turn, "unknown": unknown, "padding": pick(configured("pad"))}
    found: dict[str, Any] = {
        f"tokenizer.ggml.{key}_token_id": value for key, value in named.items() if value is not None
    }
    found["tokenizer.ggml.add_bos_token"] = first is not None
    found["tokenizer.ggml.add_eos_token"] = last is not None
    return found


def _ends(generation: dict[str, Any], spec: DecoderSpec) -> list[int]:
    """The ids that end a text, generation_config.json's first."""
    ends = generation.get("eos_token_id")
    return [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None] + list(spec.eos)


def _bare_ends(generation: dict[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """BOS and up to three ends without a tokenizer: llama.cpp passes over them, `worker.generate` stops at them."""
    ends = [end for end in dict.fromkeys(_ends(generation, spec)) if 0 <= end < spec.vocab_size]
    named = dict(zip(END_KEYS, ends, strict=False))
    if spec.bos is not None and 0 <= spec.bos < spec.vocab_size:
        named["bos"] = spec.bos
    return {f"tokenizer.ggml.{key}_token_id": value for key, value in named.items()}


def _template(processor: dict[str, Any] | None, ids: dict[str, int]) -> tuple[int | None, int | None]:
    """The token that the post-processor puts in front of a text, and the one behind it."""
    if processor is None:
        return None, None
    if processor["type"] == "Sequence":
        found = [_template(step, ids) for step in processor["processors"]]
        fronts, backs = ([item[side] for item in found if item[side] is not None] for side in (0, 1))
        return fronts[0] if fronts else None, backs[0] if backs else None
    if processor["type"] != "TemplateProcessing":
        return None, None
    names = [step["SpecialToken"]["id"] if "SpecialToken" in step else None for step in processor["single"]]
    special = {name: item["ids"][0] for name, item in processor.get("special_tokens", {}).items()}
    at = names.index(None)
    if at > 1 or len(names) - at > 2:
        raise NoKind(f"the text gets {at} tokens in front and {len(names) - at - 1} behind (llama.cpp adds one each)")
    front, back = names[:at], names[at + 1 :]
    return (special[front[0]] if front else None), (special[back[0]] if back else None)


def _chat_template(assets: dict[str, bytes], config: dict[str, Any]) -> dict[str, Any]:
    if "chat_template.jinja" in assets:
        return {"tokenizer.chat_template": assets["chat_template.jinja"].decode()}
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    return {"tokenizer.chat_template": template} if template else {}


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as the list of its steps."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step.get("normalizers") or step.get("pretokenizers") or () for inner in _flat(part)]
    return [step]


def _json(assets: dict[str, bytes], name: str) -> dict[str, Any] | None:
    if name not in assets:
        return None
    try:
        found: dict[str, Any] = json.loads(assets[name])
    except ValueError as error:
        raise BadInput(f"{name}: not JSON ({error}).") from error
    return found
