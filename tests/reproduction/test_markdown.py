from clearstamp.reproduction import markdown
from tests.tables import compact


def test_the_last_side_stands_for_the_columns_that_follow():
    made = markdown.table(("a", "b", "c"), [("1", "2", "3")], "lr")
    assert compact(made) == "| a | b | c |\n| - | -: | -: |\n| 1 | 2 | 3 |" and made.endswith("\n")
    assert compact(markdown.table(("a", "b"), [])) == "| a | b |\n| - | - |"


def test_plain_text_stays_plain():
    assert markdown.plain_table(("a",), [("x|y *z*",)]).splitlines()[-1] == r"| x\|y \*z\* |"
