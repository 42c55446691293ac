"""What a picture costs in tokens, model by model: rules as dated data, and their arithmetic.

Vendors change their constants and their documents disagree with their bills, so each rule says
where it is from, when that was read, and whether a document, a bill or published code stands
behind it. Of several the newest counts; none is ever an average. Nothing here opens a picture.
"""

from __future__ import annotations

from chiasm.operations.tokens.fit import fit
from chiasm.operations.tokens.from_config import rule_from_config
from chiasm.operations.tokens.limits import RequestLimits, limits_for
from chiasm.operations.tokens.rule import Evidence, ImageCost, ImageRule
from chiasm.operations.tokens.table import KnownModel, known_models, rule_for, rules_for

__all__ = [
    "Evidence",
    "ImageCost",
    "ImageRule",
    "KnownModel",
    "RequestLimits",
    "fit",
    "known_models",
    "limits_for",
    "rule_for",
    "rule_from_config",
    "rules_for",
]
