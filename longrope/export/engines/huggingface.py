"""Hugging Face transformers: one attention factor, and a list for every forward call.

Nothing is taken from the JSON: the rotary module that transformers builds for the config is asked, at every length.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from longrope.export.engines.folder import FROM_CONFIG, Folder
from longrope.export.engines.service import Applied, Service
from longrope.lengths import format_length
from longrope.model.architectures import GLOBAL_LAYERS
from longrope.rope.factors import plain_inv_freq

_RECOMPUTES = ("phi3", "phi4_multimodal", "phimoe")
_CODE = "modeling_longrope"


def version() -> str:
    """The transformers that is asked."""
    import transformers

    return f"transformers {transformers.__version__}"


def serve(folder: Folder, longest: int) -> Service:
    """What ``AutoModelForCausalLM`` computes for sequences of at most ``longest`` tokens."""
    if _has_code(folder):
        return _with_code(folder, longest)
    rotary = _Rotary(folder)
    original = folder.original
    short, long = rotary.applied(min(original, longest)), rotary.applied(longest)
    same = (short.lambdas, short.attention_factor) == (long.lambdas, long.attention_factor)
    notes, mismatches = [], []
    if same:
        crossing = "never: both lists are the same"
    elif folder.model_type in _RECOMPUTES:
        crossing = f"generation that grows above {format_length(original)} tokens recomputes its cache once"
    else:
        crossing = f"generation that grows above {format_length(original)} tokens keeps the cache of the short list"
        mismatches.append(
            f"a text that grows above {format_length(original)} tokens while it is generated goes on with keys of the "
            "other list; longrope.load, a folder written with --code or --single-list, or use_cache=False do not"
        )
    if not same:
        notes.append("the longest row decides for the whole batch: a short one beside it gets the long list")
    if folder.rope.architecture.local_layers == "shared" and folder.reference != FROM_CONFIG:
        mismatches.append(
            "layers with a sliding window are rescaled like the others; they were measured with the model's own RoPE"
        )
    return Service(
        rotary.applied,
        longest,
        crossing,
        (f'AutoModelForCausalLM.from_pretrained("{folder.path}")',),
        boundaries=(original,),
        notes=tuple(notes),
        mismatches=tuple(mismatches),
    )


class _Rotary:
    """The rotary module of a config, asked for one length after the other."""

    def __init__(self, folder: Folder) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._folder = folder
        self._architecture = folder.rope.architecture
        config = copy.deepcopy(folder.config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        self._config = config
        self._class: Any = type(self._architecture.rotary_of(model))

    def applied(self, length: int) -> Applied:
        """The list in force for a sequence of so many tokens, read off the module."""
        import torch

        layer_type = {"layer_type": GLOBAL_LAYERS} if self._architecture.local_layers == "own" else {}
        with torch.no_grad():
            module = self._class(config=self._config)  # anew, for some types remember the longest sequence they saw
            cos, sin = module(torch.zeros(1, 1), torch.tensor([[0, length - 1]]), **layer_type)
        scale = math.hypot(float(cos[0, 0, 0]), float(sin[0, 0, 0]))
        inv_freq = self._architecture.inv_freq_of(module).double().numpy()
        rope = self._folder.rope
        lambdas = plain_inv_freq(rope.rope_theta, rope.rotary_dim) / inv_freq
        return Applied(self._name(lambdas, length), tuple(lambdas.tolist()), scale)

    def _name(self, lambdas: Any, length: int) -> str:
        folder = self._folder
        if folder.kind != "longrope":
            return f"none (rope type {folder.kind})"
        expected = "long" if length > folder.original else "short"
        for name in (expected, "short", "long"):
            if np.allclose(lambdas, folder.read_list(name), rtol=1e-5, atol=0):
                return name
        return "neither"


def _has_code(folder: Folder) -> bool:
    """Whether ``longrope apply --code`` wrote the folder."""
    code = str((folder.settings.get("auto_map") or {}).get("AutoModelForCausalLM", ""))
    return code.startswith(f"{_CODE}.") and "longrope" in folder.settings and (folder.path / f"{_CODE}.py").is_file()


def _with_code(folder: Folder, longest: int) -> Service:
    """A folder with the modeling file of --code: every window and n_hat, as its config lists them."""
    settings = folder.settings["longrope"]
    theta, rope = settings["rope_theta"], folder.rope
    ratio = plain_inv_freq(rope.rope_theta, rope.rotary_dim) / plain_inv_freq(theta, rope.rotary_dim)
    windows = settings["windows"]

    def applied(length: int) -> Applied:
        window = next((each for each in windows if length <= each["max_length"]), windows[-1])
        lambdas = tuple((np.asarray(window["lambdas"]) * ratio).tolist())
        name = f"window {format_length(window['max_length'])}"
        return Applied(name, lambdas, window["attention_factor"], window["n_hat"])

    return Service(
        applied,
        longest,
        "generation that grows into another window recomputes its cache once",
        (f'AutoModelForCausalLM.from_pretrained("{folder.path}", trust_remote_code=True)',),
        boundaries=tuple(each["max_length"] for each in windows),
        notes=(
            "the modeling file in the folder was not run for this check; its windows were read from config.json",
            "without trust_remote_code=True there are two lists, one attention factor and no n_hat",
        ),
        has_n_hat=True,
    )
