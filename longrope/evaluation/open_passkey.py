"""From settings to the suite that hides passkeys."""

from __future__ import annotations

from longrope.evaluation.passkey import PasskeySuite
from longrope.evaluation.settings import PasskeySettings
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress


def open_passkey(
    settings: PasskeySettings, lengths: tuple[int, ...], seed: int, model: LoadedModel, progress: Progress
) -> PasskeySuite:
    """The suite, once its shortest text is known to hold what is hidden.

    Raises:
        SettingsError: if it does not.
    """
    suite = PasskeySuite(lengths, settings.trials, seed, settings.introduction)
    suite.prompt(model.tokenizer, suite.items[0].key)
    progress.note(f"{settings.trials} pass keys at each of {len(lengths)} lengths")
    return suite
