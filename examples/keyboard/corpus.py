"""Text -> documents -> sentences -> words.

A sentence is a tuple of lower-case words. What stands where a word would but is none (a number, an identifier, a bit of
code) is kept as `NOT_A_WORD`, so that the neighbours stay apart, and nobody is ever asked to predict it.

The default corpus is English that comes with Python itself: the help topics of `pydoc_data` and the docstrings of the
standard library. The library's files are parsed, never imported: some of them do things when imported.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

Sentence = tuple[str, ...]
Document = tuple[Sentence, ...]

NOT_A_WORD = ""
"""Stands in a sentence for a token that is no word."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*\Z")
_END_OF_SENTENCE = re.compile(r"(?<=[.!?:;])[\"')\]*_]*\s+")
_AROUND_A_WORD = "\"'`*_()[]{}<>.,:;!?|~#"
_NOT_PROSE = (">>>", "...", "$", "|", "+-", "--", "==", "::", "@", ".. ")
_SKIPPED_FOLDERS = frozenset(
    # other people's packages, tests, the topics (read apart), and a hundred codecs with the same three lines
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings", "__pycache__"}
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PAGE = 1000  # words: a text file is cut into documents of about this length
_SHORTEST = 3  # words: what is shorter is a heading or a fragment


def sentences(text: str) -> Iterator[Sentence]:
    """The sentences of running text; paragraphs end at blank lines, lines of code and tables are left out."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("\N{EM DASH}", " ").replace("--", " ")
    for paragraph in re.split(r"\n\s*\n", text):
        lines = (line.strip() for line in paragraph.splitlines())
        prose = " ".join(line for line in lines if line and not line.startswith(_NOT_PROSE))
        for part in _END_OF_SENTENCE.split(prose):
            sentence = tuple(_words(part))
            real = sum(word != NOT_A_WORD for word in sentence)
            if real >= _SHORTEST and 2 * real > len(sentence):
                yield sentence


def _words(part: str) -> Iterator[str]:
    for token in part.lower().split():
        # "well-known" is two words to a keyboard; "os.path" and "x=3" are none
        for piece in token.strip(_AROUND_A_WORD).split("-"):
            if _WORD.match(piece):
                yield piece
            elif any(character.isalnum() for character in piece):
                yield NOT_A_WORD


def read_file(path: Path) -> list[Document]:
    """A text file as documents of about a thousand words, in the file's order.

    Raises ValueError where the file holds no English text (it is binary, or too short to train on).
    """
    raw = path.read_bytes()
    text = raw.decode("utf-8", errors="replace")
    if b"\0" in raw[:65536] or text.count("\N{REPLACEMENT CHARACTER}") * 100 > len(text):
        raise ValueError(f"{path}: not text ({len(raw)} bytes, not UTF-8). Give a plain text file.")
    documents: list[Document] = []
    page: list[Sentence] = []
    for sentence in sentences(text):
        page.append(sentence)
        if sum(map(len, page)) >= _PAGE:
            documents.append(tuple(page))
            page = []
    documents += [tuple(page)] if page else []
    if len(documents) < 10:
        words = sum(len(sentence) for document in documents for sentence in document)
        raise ValueError(
            f"{path}: {words} words of running text, at least {10 * _PAGE} are needed to train and hold out."
        )
    return documents


def read_python() -> list[Document]:
    """The help topics and the docstrings of this Python's standard library, one document per topic or module.

    The order is a shuffle by the digest of each document's name: the same on every run, and whatever is cut off the
    end is a fair sample. A sentence counts once: docstrings are copied from module to module, and what was trained on
    word for word must not be what is asked.
    """
    # A package of one module that holds a dictionary; importing it does nothing else.
    from pydoc_data.topics import topics

    texts = {f"topic {name}": [text] for name, text in topics.items()}
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts
        if not _SKIPPED_FOLDERS.intersection(folders):
            texts["/".join(folders)] = list(_docstrings(path))
    shuffled = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest())
    seen: set[Sentence] = set()
    documents: list[Document] = []
    for name in shuffled:
        everything = dict.fromkeys(sentence for text in texts[name] for sentence in sentences(text))
        new = tuple(sentence for sentence in everything if sentence not in seen)
        seen.update(new)
        documents += [new] if new else []
    return documents


def _docstrings(path: Path) -> Iterator[str]:
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the library's own strings are not the user's concern
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # a template or a deliberately broken file
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def split(documents: list[Document], share: float = 0.1) -> tuple[list[Document], list[Document]]:
    """Whole documents off the end until `share` of the words are held out: (train, held out)."""
    lengths = [sum(map(len, document)) for document in documents]
    held_out, cut = 0, len(documents)
    while cut > 1 and held_out < share * sum(lengths):
        cut -= 1
        held_out += lengths[cut]
    return documents[:cut], documents[cut:]
