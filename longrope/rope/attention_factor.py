"""Attention factors: what multiplies cos and sin, so that attention stays as sharp over more tokens.

Logits get its square. YaRN's temperature is the inverse square.
"""

from __future__ import annotations

import math

from longrope.exceptions import SettingsError

NAMES = ("su", "yarn", "present", "none")


def su(ratio: float, original_length: int) -> float:
    """``sqrt(1 + ln s / ln L)``: LongRoPE's, in its released code and in Phi-3; 1 where nothing is extended.

    Raises:
        SettingsError: if the original length is below 2, for which the formula has no value.
    """
    if ratio <= 1:
        return 1.0
    if original_length < 2:
        raise SettingsError(f'attention factor "su" needs an original length of at least 2, not {original_length}')
    return math.sqrt(1 + math.log(ratio) / math.log(original_length))


def yarn(ratio: float) -> float:
    """``0.1 ln s + 1``: YaRN's, arXiv 2309.00071, section 3.4; 1 where nothing is extended."""
    return 1.0 if ratio <= 1 else 0.1 * math.log(ratio) + 1.0


def resolve(spec: str | float, ratio: float, original_length: int, present: float) -> float:
    """The attention factor that a setting names.

    Args:
        spec: "su", "yarn", "present" (the model's own), "none" (1), or a number.
        ratio: target over original length.
        original_length: tokens the model was pretrained on.
        present: the attention factor of the model as it is.

    Raises:
        SettingsError: if ``spec`` is none of these, or a number that is not finite and above 0.
    """
    match spec:
        case "su":
            return su(ratio, original_length)
        case "yarn":
            return yarn(ratio)
        case "present":
            return present
        case "none":
            return 1.0
    try:
        value = math.nan if isinstance(spec, bool) else float(spec)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise SettingsError(f"attention factor {spec!r} is unknown; give {', '.join(NAMES)} or a number above 0")
    return value
