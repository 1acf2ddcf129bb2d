"""What stands between the marks of a page is written anew; the rest stays."""

import pytest

from hf_tokaccel.results.marked import fill_marked, write_marked
from hf_tokaccel.results.report import markdown_table

PAGE = "Before.\n<!-- begin: one -->\nold\n<!-- end: one -->\nBetween.\n<!-- begin: two -->\n<!-- end: two -->\n"


def test_every_place_is_filled_and_filled_again():
    filled = fill_marked(PAGE, {"one": "| 1 \\1 |", "two": "2", "three": "of another page"})
    assert filled == (
        "Before.\n<!-- begin: one -->\n\n| 1 \\1 |\n\n<!-- end: one -->\nBetween.\n"
        "<!-- begin: two -->\n\n2\n\n<!-- end: two -->\n"
    )
    assert fill_marked(filled, {"one": "| 1 \\1 |", "two": "2"}) == filled
    with pytest.raises(ValueError, match=r"nothing for the places \['two'\]: known are one"):
        fill_marked(PAGE, {"one": "1"})


def test_a_page_that_is_not_there_is_made(tmp_path):
    page = tmp_path / "docs" / "new.md"
    write_marked(page, {"one": "1"}, "Title")
    assert page.read_text() == "# Title\n\n<!-- begin: one -->\n\n1\n\n<!-- end: one -->\n"
    page.write_text(page.read_text().replace("# Title", "# Another"))
    write_marked(page, {"one": "2"}, "Title")
    assert page.read_text() == "# Another\n\n<!-- begin: one -->\n\n2\n\n<!-- end: one -->\n"
    with pytest.raises(FileNotFoundError):
        write_marked(tmp_path / "none.md", {"one": "1"})


def test_columns_of_text_and_numbers():
    table = markdown_table(["a", "b", "c", "d"], [["1", "2", "3", "4"]], names=2, remarks=1)
    assert table == "| a | b | c | d |\n| --- | --- | ---: | --- |\n| 1 | 2 | 3 | 4 |"
