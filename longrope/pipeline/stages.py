"""The stages of a recipe: each is the settings of one command, less what the stages before it decide."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from longrope.data.yaml_file import Section
from longrope.evaluation.settings import EvaluationSettings, HarnessSettings
from longrope.evaluation.suites import SuiteSettings
from longrope.exceptions import SettingsError
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.settings import FinetuneSettings
from longrope.lengths import format_length, parse_length
from longrope.schema import STRICT, OptionalLength
from longrope.search.readjust import ReadjustSettings
from longrope.search.settings import SearchSettings

SCALINGS = ("pi", "ntk", "yarn", "abf")
ORIGINAL, CURRENT, EXPORTED = MODELS = ("original", "current", "exported")


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Factors that need no search.

    Attributes:
        method: ``pi``, ``ntk``, ``yarn``, or ``abf``: a raised rope_theta (arXiv 2309.16039).
        target_length: tokens that they are meant for; those of a segment when not given.
        rope_theta: of ``abf``.
    """

    __pydantic_config__ = STRICT

    method: str
    target_length: OptionalLength = None
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        if self.method not in SCALINGS:
            raise SettingsError(f"method {self.method!r} is not known; use {', '.join(SCALINGS)}")
        if (self.method == "abf") != (self.rope_theta is not None):
            raise SettingsError("method abf and rope_theta belong together; give both or neither")
        if self.rope_theta is not None and not 0 < self.rope_theta < math.inf:
            raise SettingsError(f"rope_theta is {self.rope_theta:g}; give one above that of the model")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How the model folder is written; every name is also an option of ``longrope apply``.

    Attributes:
        code: add the modeling file that computes n_hat and all windows; where n_hat is not 0 and nothing is chosen.
        attention_factor: of the ``long`` or the ``short`` list, for plain transformers, which has one for both.
        without_n_hat: use the best candidate with n_hat = 0 where n_hat is not 0.
    """

    __pydantic_config__ = STRICT

    code: bool | None = None
    without_n_hat: bool = False
    short_window: OptionalLength = None
    single_list: bool = False
    attention_factor: str = "long"
    config_format: str = "v5"
    config_only: bool = False
    copy: bool = False

    def __post_init__(self) -> None:
        from longrope.export.config import CONFIG_FORMATS
        from longrope.export.two_lists import FAVOURED

        if self.config_format not in CONFIG_FORMATS:
            raise SettingsError(f"config_format {self.config_format!r} is not known; use {' or '.join(CONFIG_FORMATS)}")
        if self.attention_factor not in FAVOURED:
            raise SettingsError(f"attention_factor {self.attention_factor!r} is not known; use {' or '.join(FAVOURED)}")
        if self.single_list and self.short_window is not None:
            raise SettingsError("short_window and single_list contradict each other; give one of them")
        if self.code and self.without_n_hat:
            raise SettingsError("code keeps n_hat and without_n_hat drops it; choose one of them")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: its folder in the run; no other stage has it.
        where: file and line, for messages.
    """

    kind: ClassVar[str]

    name: str
    where: str

    def describe(self) -> str:
        """What it does, in a few words."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SearchStage(Stage):
    """Factors for a longer window, searched on the model as it then is."""

    kind: ClassVar[str] = "search"

    settings: SearchSettings

    def describe(self) -> str:
        return f"search factors for {format_length(self.settings.target_length)}"


@dataclass(frozen=True, kw_only=True)
class FinetuneStage(Stage):
    """Training under the factors of the search before it.

    Attributes:
        factors: a file, or a method that needs no search; those of the search before it when None.
        keep_windows: keep the model's own windows below the new one. Without them, segments that are shorter than the
            model's own window are trained under the new factors too.
        launch: how processes are started.
    """

    kind: ClassVar[str] = "finetune"

    settings: FinetuneSettings
    factors: str | Scaling | None = None
    keep_windows: bool = True
    launch: LaunchSettings = field(default_factory=LaunchSettings)

    def describe(self) -> str:
        settings = self.settings
        windows = ", ".join(map(format_length, sorted(set(settings.windows))))
        turns = f", windows {windows} in turn" if windows else ""
        return f"fine-tune {settings.steps} steps in segments of {format_length(settings.seq_length)}{turns}"


@dataclass(frozen=True, kw_only=True)
class ReadjustStage(Stage):
    """Factors for short windows of the extended model."""

    kind: ClassVar[str] = "readjust"

    settings: ReadjustSettings

    def describe(self) -> str:
        return f"readjust at {', '.join(map(format_length, self.settings.windows))}"


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """One suite.

    Attributes:
        model: ``current``, as the stages before have made it; ``original``, as the recipe found it; or ``exported``,
            the folder of the export before, as plain transformers computes it.
    """

    kind: ClassVar[str] = "evaluate"

    settings: EvaluationSettings
    suite_name: str
    suite: SuiteSettings
    model: str = CURRENT

    def describe(self) -> str:
        of = {ORIGINAL: "the original model", EXPORTED: "the exported folder"}.get(self.model, "the model")
        if isinstance(self.suite, HarnessSettings):  # which finds its lengths by itself
            return f"{self.suite_name} of {of}: {', '.join(self.suite.tasks)}"
        return f"{self.suite_name} of {of} at {', '.join(map(format_length, self.settings.lengths))}"


@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """A Hugging Face folder of the model with all its windows."""

    kind: ClassVar[str] = "export"

    settings: ExportSettings

    def describe(self) -> str:
        return "write the model folder"


STAGES: dict[str, type[Stage]] = {
    each.kind: each for each in (SearchStage, FinetuneStage, ReadjustStage, EvaluateStage, ExportStage)
}


def stage_name(kind: str, options: Section) -> str:
    """The name of a stage: what it is given, or its kind and what tells it from others of that kind."""
    given = options.get("name")
    if given is not None:
        return str(given)
    key = {"search": "target_length", "finetune": "seq_length", "evaluate": "suite"}.get(kind)
    told = options.get(key) if key else None
    if isinstance(told, bool) or not isinstance(told, (str, int)):
        return kind
    try:
        return f"{kind}-{told if key == 'suite' else format_length(parse_length(told))}"
    except SettingsError:  # said where the stage is read
        return kind


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The model that a recipe starts from.

    Attributes:
        name: a folder, a hub id, or ``demo`` for the embedded model.
        revision: branch, tag or commit of a hub id.
    """

    __pydantic_config__ = STRICT

    name: str
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """What stages read where they say nothing else.

    Attributes:
        documents: long documents of searches and readjustments: ``source``, ``field``, ``split``, ...
        evaluation: those of evaluations, which nothing was chosen by; the same as ``documents`` when empty.
        training: a mixture file, the name of a ready mixture, or one source, of fine-tuning.
    """

    __pydantic_config__ = STRICT

    documents: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    training: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pretrained model, and the stages that extend it.

    Attributes:
        name: of the file, without its ending.
        content: the recipe as it was given, with what was changed on the command line, as plain YAML data.
    """

    name: str
    content: dict[str, Any]
    model: ModelChoice
    stages: tuple[Stage, ...]
    seed: int = 0
