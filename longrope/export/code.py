"""A modeling file in the exported folder: n_hat and all windows through ``trust_remote_code``, without this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from longrope import __version__
from longrope.exceptions import UnsupportedModelError
from longrope.model.architectures import GLOBAL_LAYERS, architecture_for
from longrope.rope.policy import FactorSchedule

CODE_FILE = "modeling_longrope.py"
_MODULE = CODE_FILE.removesuffix(".py")
_BASE = "LlamaForCausalLM"  # which the file is written for here
_AUTO = "AutoModelForCausalLM"


def add_code(folder: Path, config: Any, schedule: FactorSchedule) -> None:
    """Write the modeling file into ``folder`` and what it reads into ``config``, which is to be saved after that.

    ``architectures`` stays as it is, for engines that know the model by it and read its two lists. Code that the model
    brings, as the published Phi-3 models do although transformers knows them, is no longer named in the config, except
    that of its tokenizer.

    Raises:
        UnsupportedModelError: if the config was loaded by code of the model's own.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not type(config).__module__.startswith("transformers.models."):
        raise UnsupportedModelError(
            f"the config is read by code of the model's own ({type(config).__name__}), which --code cannot stand in "
            "for; leave --trust-remote-code out if transformers knows the model, or --code"
        )
    known = getattr(config, "auto_map", None) or {}
    architecture = architecture_for(config)
    base = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type]
    text = resources.files("longrope.export").joinpath(CODE_FILE).read_text(encoding="utf-8")
    text = text.replace(_BASE, base)
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# mypy"))
    (folder / CODE_FILE).write_text(f"# Written by longrope {__version__}.\n{text}", encoding="utf-8")
    tokenizer = {name: where for name, where in known.items() if name == "AutoTokenizer"}
    config.auto_map = {**tokenizer, _AUTO: f"{_MODULE}.LongRope{base}"}
    layer_types = getattr(config, "layer_types", None) or []
    shared = architecture.local_layers == "shared"
    config.longrope = {
        "rope_theta": schedule.reference.rope_theta,
        "layer_type": GLOBAL_LAYERS if architecture.local_layers == "own" else None,
        "plain_layers": [index for index, each in enumerate(layer_types) if shared and each != GLOBAL_LAYERS],
        "windows": [
            {
                "max_length": window.max_length,
                "n_hat": window.factors.n_hat,
                "attention_factor": window.factors.attention_factor,
                "lambdas": list(window.factors.lambdas),
            }
            for window in schedule.windows
        ],
    }


def remove_code(config: Any) -> None:
    """Take out of ``config`` what :func:`add_code` wrote in an earlier export; other code stays."""
    known = dict(getattr(config, "auto_map", None) or {})
    if _is_ours(known):
        del known[_AUTO]
        if known:
            config.auto_map = known
        else:  # transformers cannot read null there
            del config.auto_map
    if hasattr(config, "longrope"):
        del config.longrope


def _is_ours(auto_map: dict[str, str]) -> bool:
    return auto_map.get(_AUTO, "").startswith(f"{_MODULE}.")
