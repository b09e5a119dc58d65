"""Names of classes and labels that are likely one and the same, or none."""

from __future__ import annotations

from launcher.data.names import alike, notes_of_names


def test_names_that_are_one_but_for_their_spelling() -> None:
    names = ["1", "1.0", "2", "Red", "red ", "blue", "light-blue", "Light blue", "1.5", "caf\u00e9", "cafe\u0301"]
    assert alike(names) == [("1", "1.0"), ("Red", "red "), ("light-blue", "Light blue"), ("caf\u00e9", "cafe\u0301")]
    assert alike(["1", "10", "01a", "red", "reed", "1e5", "100000"]) == []


def test_what_is_reported_of_them() -> None:
    assert notes_of_names(["cat", "dog"]) == []
    assert notes_of_names(["1", "1.0", "2"]) == [
        "'1' and '1.0' count as different: make their spelling one where the same is meant"
    ]
    assert notes_of_names(["nan", "a"]) == [
        "'nan' counts as a class: leave those images out where it means that there is no label"
    ]
    assert notes_of_names(["N/A", "a", " None"]) == [
        "'N/A', ' None' count as classes: leave those images out where it means that there is no label"
    ]
    (line,) = notes_of_names([form(name) for name in "abcde" for form in (str.lower, str.upper)])
    assert line.startswith("'a' and 'A'; 'b' and 'B'; 'c' and 'C' and 2 more such groups count as different")
