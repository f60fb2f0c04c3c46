"""The ledger of claims is current, and each verdict is true of the numbers beside it."""

import claims
import pytest
from claims_made import CLAIMS


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.said[:50])
def test_a_verdict_holds(claim):
    assert claim.verdict in claims.VERDICTS
    assert claim.holds(*claim.numbers()), claim.measured()


def test_the_page_is_current():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.ledger(CLAIMS), "claims.py --write"


def test_a_pattern_that_finds_nothing_is_named():
    claim = claims.Claim("it flies", "article", "00", "agrees", "{0}", (("00", r"flew (\d+)"),))
    with pytest.raises(LookupError, match=r"it flies.*00 prints nothing like"):
        claim.measured()


def test_claims_are_made_once():
    assert len({claim.said for claim in CLAIMS}) == len(CLAIMS)
