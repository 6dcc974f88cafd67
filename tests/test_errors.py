import pytest

from clearstamp import errors


def test_an_error_says_what_was_got_what_was_expected_where_and_what_to_do():
    error = errors.StampError("no such thing", got=0, expected="one", where="here", remedy="give one")
    assert str(error) == "no such thing; got: 0; expected: one; where: here; what to do: give one"
    assert str(errors.StampError("no such thing", where="here")) == "no such thing; where: here"


@pytest.mark.parametrize("kind", [e for e in vars(errors).values() if isinstance(e, type)])
def test_all_errors_are_of_one_family_and_are_value_errors(kind):
    assert issubclass(kind, errors.ClearStampError)
    assert issubclass(kind, ValueError)
