"""The check of the language finds mistakes of texts, and leaves texts alone that have none."""

from pathlib import Path

import pytest

from tests.words import Text, main, mistakes, texts

WRONG = [
    "What a client was told.",
    "Who asks for a key.",
    "Return True. Whose turn it is, is not changed.",
    "The answer: what is left; What follows is a copy.",
    "A first paragraph\n\nWhoever reads this must guess.",
    "*What* is emphasized hides its subject, too.",
]
RIGHT = [
    "Return the answer of the backend.",
    "What does it cost?",  # the heading of a document may ask
    "Return the backend whose turn it is, and say what it did.",
    "Whole messages are read at once. Whenever one is complete, it is decoded.",
]
REPEATING = [
    ("read_message", "Read a message."),
    ("read_message", "Reads the messages."),
    ("ClientConnection", "A client connection."),
]
NOT_REPEATING = [
    ("read_message", "Read a message; raises ProtocolError if it is too large."),
    ("read_message", ""),
    ("", "Read a message."),  # a comment is about no name
]


def found(words: str, name: str = "") -> list[str]:
    return list(mistakes(Text(Path("a.py"), 7, words, name)))


@pytest.mark.parametrize("words", WRONG)
def test_a_sentence_that_begins_with_a_relative_pronoun_is_a_mistake(words: str) -> None:
    (mistake,) = found(words)
    assert mistake.startswith("a.py:7: a sentence begins with ")


@pytest.mark.parametrize("words", RIGHT)
def test_other_sentences_are_no_mistakes(words: str) -> None:
    assert found(words) == []


@pytest.mark.parametrize(("name", "words"), REPEATING)
def test_a_docstring_that_repeats_the_name_is_a_mistake(name: str, words: str) -> None:
    (mistake,) = found(words, name)
    assert f"the docstring of {name} only repeats its name" in mistake


@pytest.mark.parametrize(("name", "words"), NOT_REPEATING)
def test_a_docstring_with_a_fact_is_no_mistake(name: str, words: str) -> None:
    assert found(words, name) == []


def test_docstrings_and_whole_comments_of_code_are_read(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(
        '"""The module."""\n\n\ndef work():\n    """Do it."""\n'
        "    # One comment\n    # on two lines.\n    x = 1  # A second.\n"
    )
    assert [(text.line, text.words, text.name) for text in texts([tmp_path])] == [
        (1, "The module.", ""),
        (4, "Do it.", "work"),
        (6, "One comment on two lines.", ""),
        (8, "A second.", ""),
    ]


def test_paragraphs_of_documents_are_read_without_code(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("# Title\n\nA paragraph.\n\n```\nWhat is code.\n```\n\nThe end.\n")
    assert [(text.line, text.words) for text in texts([file])] == [(1, "# Title"), (3, "A paragraph."), (9, "The end.")]


@pytest.mark.parametrize(
    ("words", "output", "status"),
    [("Text.", "no mistakes\n", 0), ("What is wrong.", 'begins with "What": begin with the noun or the verb\n', 1)],
)
def test_the_command_prints_mistakes_and_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    output: str,
    status: int,
) -> None:
    (tmp_path / "page.md").write_text(words)
    monkeypatch.setattr("sys.argv", ["words", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().out.endswith(output)


def test_the_command_counts_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("What is wrong. Another file stands where one is.")
    monkeypatch.setattr("sys.argv", ["words", "--count", str(tmp_path)])
    main()
    assert "9 words, 2 sentences, 50.0 % begin with What/Who/Whose" in capsys.readouterr().out
