"""llama.cpp behind a worker: its logits are the model's, its cache carries on, and its death is an ordinary error."""

import numpy as np
import pytest

pytest.importorskip("xllamacpp")
gguf = pytest.importorskip("gguf")

import gguf_by_hand  # noqa: E402

from octavo.errors import BadInput, OctavoError  # noqa: E402
from octavo.runtimes.llama.session import LlamaSession, quantize_chunk  # noqa: E402

PROMPT = "Once upon a time, there was a little girl named Lily."


@pytest.fixture(scope="session")
def source(stories260k):
    return stories260k


@pytest.fixture(scope="session")
def model(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "stories260K.gguf"
    gguf_by_hand.write(source, path)
    return path


@pytest.fixture(scope="module")
def session(model):
    with LlamaSession(model, threads=1) as session:
        yield session


def feed(session, ids, state=None):
    out, state = session.step({"ids": np.asarray(ids, np.int64)[None]}, state)
    return out["logits"][0], state


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_logits_equal_transformers_at_every_position(session, source):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    reference = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = session.tokenize(PROMPT)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    logits, _ = feed(session, ids)
    assert logits.shape == (len(ids), 512)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 2e-4
    assert session.logits_from == "llama.cpp C API"
    assert session.fallback == ""


def test_token_by_token_equals_all_at_once(session):
    ids = session.tokenize(PROMPT)
    whole, _ = feed(session, ids)
    state, rows = None, []
    for token in ids:
        row, state = feed(session, [token], state)
        rows.append(row[0])
    assert state["n_past"] == len(ids)
    assert np.abs(whole - np.stack(rows)).max() < 2e-4


def test_a_state_can_go_back_and_branch(session):
    ids = session.tokenize(PROMPT)
    whole, _ = feed(session, ids)
    _, trunk = feed(session, ids[:5])
    feed(session, [7, 8, 9], trunk)
    rest, _ = feed(session, ids[5:], trunk)
    assert np.abs(rest - whole[5:]).max() < 2e-4


def test_a_state_of_a_sequence_that_is_gone_is_refused(session):
    _, old = feed(session, [1, 2, 3])
    feed(session, [1, 5])
    with pytest.raises(BadInput, match="no longer cached"):
        feed(session, [4], old)


def test_more_than_one_batch_and_the_end_of_the_context(model):
    ids = np.random.default_rng(0).integers(3, 512, 700)
    with LlamaSession(model, threads=1, context=768) as session:
        whole, state = feed(session, ids)
        head, middle = feed(session, ids[:300])
        tail, _ = feed(session, ids[300:], middle)
        assert np.abs(whole - np.concatenate([head, tail])).max() < 5e-4
        with pytest.raises(BadInput, match=r"700 \+ 69 positions exceed the context of 768"):
            feed(session, ids[:69], {**state, "sequence": session._generation})
    with LlamaSession(model, threads=1, context=20) as session, pytest.raises(BadInput, match="context of 20"):
        feed(session, ids[:21])


def test_large_logits_come_over_in_pieces(model, monkeypatch):
    monkeypatch.setattr("octavo.runtimes.llama.session.LOGITS_BYTES_PER_MESSAGE", 7 * 512 * 4)
    with LlamaSession(model, threads=1) as pieces:
        ids = pieces.tokenize(PROMPT)
        assert len(ids) > 14
        assert np.isfinite(feed(pieces, ids)[0]).all()


@pytest.mark.parametrize("text", [PROMPT, "two  spaces", "naïve — 你好 🙂", "", " lead", "tab\tnew\nline"])
def test_tokens_are_the_sources_and_come_back(session, source, text):
    tokenizers = pytest.importorskip("tokenizers")
    ids = session.tokenize(text)
    assert session.detokenize(ids) == text
    if text:  # of nothing, the source makes a lone space prefix
        assert ids == tokenizers.Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids


def test_many_texts_in_one_call(session):
    texts = [PROMPT, "", "a", b"raw \xff byte"]
    many = session.tokenize_many(texts)
    assert many == [session.tokenize(text) for text in texts]
    assert session.tokenize_many([]) == []
    assert "<0xFF>" not in session.detokenize(many[3])
    assert session.tokenize("</s>", parse_special=True, add_special=False) == [2]
    assert session.tokenize("</s>", add_special=False) != [2]


def test_ids_outside_the_vocabulary_are_named(session):
    with pytest.raises(BadInput, match="token id 512 is outside the vocabulary of 512"):
        feed(session, [1, 512])
    with pytest.raises(BadInput, match=r"shape \[1, n\]"):
        session.step({"ids": np.ones((2, 3), np.int64)})


def test_generation_streams_and_greedy_text_follows_the_logits(session):
    pieces = []
    made = session.generate(PROMPT, 12, temperature=0.0, on_token=pieces.append, return_ids=True)
    assert "".join(pieces) == made.text
    assert len(pieces) > 3
    assert made.n == 12 == len(made.ids)
    assert made.finish_reason == "length"
    assert made.prefill_tokens_per_second > 0
    assert made.decode_tokens_per_second > 0
    ids, state = session.tokenize(PROMPT), None
    logits, state = feed(session, ids)
    for token in made.ids:
        assert logits[-1].argmax() == token
        logits, state = feed(session, [token], state)
    assert session.generate(ids, 12, temperature=0.0).text == made.text
    assert session.peak_rss_bytes > 10 << 20


def test_a_seed_makes_sampling_repeatable(session):
    first, again, other = (session.generate(PROMPT, 20, 1.0, seed).text for seed in (1, 1, 2))
    assert first == again != other


def test_the_server_refuses_a_prompt_beyond_its_context(session):
    with pytest.raises(BadInput, match="exceeds the available context size"):
        session.generate([1] * 600, 1)


def test_the_fallback_gives_the_same_log_probabilities_and_says_so(model, session):
    with LlamaSession(model, threads=1, through="server") as fallback:
        assert fallback.logits_from == "n_probs (log-probabilities)"
        assert fallback.fallback == "asked for"
        assert fallback.tokenize(PROMPT) == session.tokenize(PROMPT)
        ids = session.tokenize(PROMPT)[:6]
        assert fallback.detokenize(ids).strip() == session.detokenize(ids)
        one, state = feed(fallback, ids[:4])
        two, _ = feed(fallback, ids[4:], state)
    expected = log_softmax(feed(session, ids)[0])
    assert np.abs(np.concatenate([one, two]) - expected)[expected > -20].max() < 1e-3
    assert session.self_test() < 1e-3


def test_another_struct_layout_is_noticed(monkeypatch):
    from octavo.runtimes.llama import capi

    capi.library.cache_clear()
    for table, name, moved in ((capi.CONTEXT_PARAMS, "n_threads", 24), (capi.MODEL_PARAMS, "load_mode", 28)):
        _, code, default = table[name]
        with monkeypatch.context() as patch:
            patch.setitem(table, name, (moved, code, default))
            with pytest.raises(capi.LayoutMismatch, match=f"{name} at byte {moved}"):
                capi.library()
    with monkeypatch.context() as patch:
        patch.setitem(capi.STRUCT_BYTES, "llama_context_default_params", 160)
        if capi.platform.machine() == "x86_64":
            with pytest.raises(capi.LayoutMismatch, match="returns 168 bytes, expected 160"):
                capi.library()


def test_a_file_without_tokenizer_runs_on_ids(source, tmp_path, session):
    path = tmp_path / "bare.gguf"
    gguf_by_hand.write(source, path, tokenizer=False)
    prompt = session.tokenize(PROMPT)
    with LlamaSession(path, threads=1) as bare:
        assert not bare.has_tokenizer
        assert bare.n_vocab == 512
        assert np.abs(feed(bare, prompt)[0] - feed(session, prompt)[0]).max() < 1e-5
        with pytest.raises(BadInput, match="carries no tokenizer"):
            bare.tokenize("a")
        with pytest.raises(BadInput, match="carries no tokenizer"):
            bare.generate("a")
        seen = []
        made = bare.generate(prompt, 8, temperature=0.0, on_token=seen.append)
        assert made.ids == session.generate(prompt, 8, temperature=0.0, return_ids=True).ids
        assert "".join(seen).split() == [str(i) for i in made.ids]
        assert made.generated_by == "llama.cpp C API"


@pytest.mark.parametrize("keep", [0, 3, 100, 9000, 600_000, -1])
def test_a_truncated_file_is_bad_input(model, tmp_path, keep):
    path = tmp_path / "cut.gguf"
    path.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(OctavoError, match=r"cut\.gguf .*llama\.cpp"):
        LlamaSession(path, threads=1)


def test_nonsense_and_absence_are_bad_input(tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 64)
    with pytest.raises(OctavoError, match=r"llama\.cpp"):
        LlamaSession(path, threads=1)
    with pytest.raises(BadInput, match="no such file"):
        LlamaSession(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(("kind", "size"), [("q4_0", 18), ("q8_0", 34)])
def test_quantize_chunk_equals_gguf_py(kind, size):
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    blocks, seconds = quantize_chunk(kind, rows)
    assert len(blocks) == 5 * 2 * size
    assert blocks == expected.tobytes()
    assert seconds > 0


def test_quantize_chunk_refuses_what_the_library_would_abort_on():
    rows = np.ones((2, 256), np.float32)
    assert len(quantize_chunk("q4_K", rows, np.ones(256, np.float32))[0]) == 2 * 144
    with pytest.raises(BadInput, match="block of q4_K is 256"):
        quantize_chunk("q4_K", rows[:, :64])
    with pytest.raises(BadInput, match="needs importance weights"):
        quantize_chunk("iq2_xxs", rows)
    with pytest.raises(BadInput, match=r"Nearest: .*q4_0"):
        quantize_chunk("q4_O", rows)
