"""Tables of text: delimiters, decimal marks, groups of thousands, names; what is refused."""

import numpy as np
import pytest

from kullback.core import DataError
from kullback.data.tables import heading_of, read_table

NUMBERS = np.random.default_rng(0).uniform(-9000, 5e6, (12, 3))
NUMBERS = np.stack([NUMBERS[:, k].round(places) for k, places in enumerate((0, 1, 3))], 1)
NUMBERS[0] = [-1234567.0, 0.5, 12.125]


def english(x):
    return f"{x:,.10g}"


def german(x):
    return english(x).translate(str.maketrans(",.", ".,"))


def lines(write, mark, *, quote=""):
    rows = [mark.join(f"{quote}{write(x)}{quote}" for x in row) for row in NUMBERS]
    return "\n".join(rows) + "\n"


def numbered(name):
    each = lines(str, ",").splitlines(keepends=True)
    return "".join(name.format(k) + one for k, one in enumerate(each))


WRITINGS = {
    "plain": lines(str, ","),
    "exponents": lines(lambda x: f"{x:.12e}", "|"),
    "grouped": lines(english, "\t"),
    "grouped, quoted": lines(english, ", ", quote='"'),
    "decimal comma": lines(german, ";"),
    "decimal comma, quoted": lines(german, ",", quote='"'),
    "exponents with a comma": lines(lambda x: f"{x:.12e}".replace(".", ","), ";"),
    "spaces": lines(lambda x: english(x).replace(",", "\u202f"), ";"),
    "apostrophes": lines(lambda x: english(x).replace(",", "’"), ","),
    "names of columns": "a;b;c\n" + lines(german, ";"),
    "names of rows": numbered("r_{},"),
    "names that Python reads as numbers": "id,a,b,c\n" + numbered("{}_1,"),
    "a mark at every end": "a,b,c\n" + lines(str, ",").replace("\n", ",\n"),
    "blank rows below": lines(str, ",") + ",,\n , ,\n",
    "a byte order mark": "\ufeffa,b,c\n" + lines(str, ","),
    "numbers of rows and columns": ",0,1,2\n" + numbered("{},"),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_ways_of_writing_a_table_give_its_numbers(tmp_path, name):
    path = tmp_path / "a.csv"
    path.write_text(WRITINGS[name], encoding="utf-8")
    found, notes = read_table(path)
    assert np.array_equal(found["table"], NUMBERS)
    assert ("such as" in "".join(notes)) == (name in ODD)


ODD = {
    *("grouped", "grouped, quoted", "decimal comma", "decimal comma, quoted", "spaces"),
    *("exponents with a comma", "apostrophes", "names of columns"),
}


REFUSED = {
    "2,345;1,234\n3,456;7,890\n": "got '2,345', which is 2345 or, with a decimal comma, 2.345",
    "1.5;2\n1,5;2\n": "row 2: .*'1,5' in column 1. Try: one way of writing numbers",
    "100 200\n300 400\n": "got '100 200'. Try: commas between columns",
    "1,5 2,5\n3,5 4,5\n": "Try: commas between columns",
    "a b\nc d\n": "row 2: expected numbers; got 'c d'",
    "a,b\nNA,1\n2,3\n": "row 2: .*'NA' in column 1. Try: rows without missing values",
    "a,b\n1,2\nx,3\n4,5\n": "row 3: .*'x' in column 1",
    "a,b\n5 %,2\n6,3\n": "row 2: .*'5 %' .*signs of units",
    "a,b\n": "expected rows of numbers; got none",
    ",\n,\n": "expected rows of numbers; got none",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=REFUSED[text]):
        read_table(path)


def test_one_column_of_numbers_is_no_column_of_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n1.5\n-2\n")
    assert read_table(path)[0]["table"].tolist() == [[1.5], [-2.0]]
    path.write_text("1.5\n-2\n")
    assert read_table(path)[0]["table"].tolist() == [[1.5], [-2.0]]


def test_a_first_row_that_counts_the_columns_is_no_example(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("0,1,2,3\n5,6,7,8\n1,1,1,1\n")
    found, notes = read_table(path)
    assert found["table"].tolist() == [[5, 6, 7, 8], [1, 1, 1, 1]]
    assert notes == ["the first row, 0 to 3, taken as numbers of columns"]


def test_an_encoding_told_by_its_first_bytes_and_long_rows(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\n1\t2\n", encoding="utf-16")
    assert read_table(path)[0]["table"].tolist() == [[1, 2]]
    assert heading_of(path) == ["a", "b"]
    path.write_text(",".join(["1.25"] * 40_000) + "\n")  # longer than a cell may be
    assert read_table(path)[0]["table"].shape == (1, 40_000)
