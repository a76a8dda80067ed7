"""Check the language of docstrings, comments and documents: ``python -m tests.words [--count] [PATH ...]``.

A sentence that begins with What, Who or Whose (or Whoever, Whatever) hides its subject; a docstring that only repeats
the name of its function tells nothing. Both are mistakes. ``--count`` prints what is only counted, too: how often
"where", and the pronouns one, those, others and another, stand in a thousand words.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_PATHS: Final = ("gateway", "grafana", "lab", "tests", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")
_RELATIVE: Final = re.compile(
    r"(?:^|[.:;!?]\s+|\n\n\s*(?:\* )?)[*`\"]*(What|Who|Whose|Whom|Whoever|Whatever)\b[^?.]*(\??)"
)
_SENTENCE: Final = re.compile(r"[.:;!?](?=\s|$)")
_PRONOUNS: Final = re.compile(r"\b(one|those|others|another)\b", re.IGNORECASE)
_FILLING: Final = frozenset(
    ["a", "an", "the", "of", "for", "in", "to", "and", "or", "is", "are", "with", "this", "that", "it", "return", "get"]
)


class Text(NamedTuple):
    """A docstring, a comment, or a paragraph of a document; ``name`` is what a docstring is about."""

    path: Path
    line: int
    words: str
    name: str = ""


def texts(paths: Sequence[Path]) -> Iterator[Text]:
    """Yield every text of the files, and of all files under the directories."""
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix == ".py":
                yield from _of_code(file)
            elif file.suffix == ".md":
                yield from _of_document(file)


def _of_code(file: Path) -> Iterator[Text]:
    source = file.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Text(file, getattr(node, "lineno", 1), docstring, getattr(node, "name", ""))
    comment: list[str] = []
    began = ended = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, is_whole = token.start[0], token.line.lstrip().startswith("#")
        if comment and (line != ended + 1 or not is_whole):
            yield Text(file, began, " ".join(comment))
            comment = []
        began, ended = (began, line) if comment else (line, line)
        comment.append(token.string.lstrip("#: "))
    if comment:
        yield Text(file, began, " ".join(comment))


def _of_document(file: Path) -> Iterator[Text]:
    line = 1
    for part in re.split(r"(\n\s*\n|```.*?```)", file.read_text(), flags=re.DOTALL):
        if part.strip() and not part.startswith("```"):
            yield Text(file, line, part.strip())
        line += part.count("\n")


def mistakes(text: Text) -> Iterator[str]:
    """Yield what is wrong with a text, each with its place."""
    for found in _RELATIVE.finditer(text.words):
        if not found[2]:
            yield f'{text.path}:{text.line}: a sentence begins with "{found[1]}": begin with the noun or the verb'
    if text.name and _repeats(text):
        yield f"{text.path}:{text.line}: the docstring of {text.name} only repeats its name: add a fact, or remove it"


def _repeats(text: Text) -> bool:
    said = {_stem(word) for word in re.findall(r"[a-z]+", text.words.lower())} - _FILLING
    name = {_stem(word) for word in re.findall(r"[a-z]+|[A-Z][a-z]*", text.name.replace("_", " "))}
    return bool(said) and said <= name


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")


def _count(found: Sequence[Text]) -> str:
    words = sum(len(text.words.split()) for text in found)
    sentences = sum(max(1, len(_SENTENCE.findall(text.words))) for text in found)
    relative = sum(1 for text in found for match in _RELATIVE.finditer(text.words) if not match[2])
    where = sum(len(re.findall(r"\bwhere\b", text.words, re.IGNORECASE)) for text in found)
    pronouns = sum(len(_PRONOUNS.findall(text.words)) for text in found)
    return (
        f"{words} words, {sentences} sentences, {100 * relative / sentences:.1f} % begin with What/Who/Whose; "
        f"in 1,000 words {1000 * where / words:.1f} where, {1000 * pronouns / words:.1f} one/those/others/another"
    )


def main() -> None:
    """Print every mistake, and exit with 1 if there is one."""
    arguments = sys.argv[1:]
    paths = [Path(argument) for argument in arguments if argument != "--count"] or [Path(path) for path in _PATHS]
    found = list(texts(paths))
    wrong = [line for text in found for line in mistakes(text)]
    if "--count" in arguments:
        for path in paths:
            of_path = [text for text in found if text.path.is_relative_to(path)]
            if of_path:
                print(f"{path}: {_count(of_path)}")
    else:
        print("\n".join(wrong) or "no mistakes")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
