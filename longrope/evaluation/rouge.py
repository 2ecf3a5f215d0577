"""ROUGE-1, ROUGE-2 and ROUGE-L of a summary (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries").

By torchmetrics, which is maintained, comes as a wheel and gives the numbers of Google's rouge-score, the reference
that most papers use, to float32's precision. Words are runs of the letters a to z and digits, in lower case.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

from longrope.exceptions import SettingsError

VARIANTS = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"[a-z0-9]")


def check_rouge(stemmer: bool = False) -> None:
    """Raise SettingsError unless what :func:`rouge` needs is installed."""
    for module in ("torchmetrics", "nltk") if stemmer else ("torchmetrics",):
        if find_spec(module) is None:
            raise SettingsError(f"ROUGE needs the package {module}: pip install longrope[eval]")


def has_words(text: str) -> bool:
    """Whether there is anything in ``text`` that ROUGE compares: other scripts than the Latin one are passed over."""
    return _WORD.search(text.lower()) is not None


def rouge(summary: str, reference: str, stemmer: bool = False) -> dict[str, float]:
    """F-measures from 0 to 1 by the names in VARIANTS.

    Args:
        summary: what is judged.
        reference: what it is compared with.
        stemmer: compare words of more than three letters by their stems (Porter, 1980), as ``-m`` of the original.
    """
    from torchmetrics.functional.text.rouge import rouge_score

    found = rouge_score(summary, reference, rouge_keys=VARIANTS, use_stemmer=stemmer)
    return {name: float(found[f"{name}_fmeasure"]) for name in VARIANTS}
