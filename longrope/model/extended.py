"""``longrope.load``: a Hugging Face model with its whole policy in force, ready to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longrope.exceptions import SettingsError
from longrope.model.attach import attach
from longrope.model.generation import Crossing
from longrope.model.load import ModelSource
from longrope.model.rope_config import check_attention_span, read_rope
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, RopePolicy, load_factors
from longrope.rope.rotary import Mode


def load(
    model: Any,
    factors: str | Path | RopeFactors | RopePolicy | None = None,
    *,
    window: Crossing = "recompute",
    mode: Mode = "exact",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """A transformers model that uses ``factors``, with any number of windows and n_hat.

    The window of each row follows from its full length. It is pinned for the row and, while ``generate`` lets the row
    grow into another window, chosen anew with the cache computed anew. The weights and the config stay those of the
    given model; :func:`longrope.export.huggingface.export_folder` writes a folder that keeps the factors.

    Args:
        model: a model folder, a hub id, or a transformers causal language model that is loaded already.
        factors: a file that a search or ``longrope import`` wrote, or factors, which join the model's present windows
            at their target length, or a whole schedule. None: what lies in the model's folder as ``longrope.json``,
            or what its config says.
        window: ``recompute`` or ``reserve``; see :func:`longrope.attach`.
        mode: ``exact`` or ``hf``; see :func:`longrope.attach`.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that lies with the model.
        options: further arguments of ``from_pretrained``, such as ``dtype`` (as saved when not given), ``device_map``
            and ``attn_implementation``.

    Returns:
        The model, in eval mode. Its attribute ``longrope`` is the :class:`~longrope.model.attach.Attachment`, whose
        ``detach()`` gives the model back as it was.

    Raises:
        UnsupportedModelError: if the model cannot be loaded, its architecture is not in the table, or its attention
            sees less than the longest window.
        FactorsError: if the factors are malformed or belong to another model.
        SettingsError: if there are no factors, or a policy is attached already.
    """
    if isinstance(model, str | Path):
        source = ModelSource(str(model), revision, trust_remote_code=trust_remote_code)
        folder: Path | None = source.folder()
        policy = _policy(source.load_config(), folder, factors, str(folder))  # before the weights, which take minutes
        if "torch_dtype" in options:  # its name in transformers 4
            options.setdefault("dtype", options.pop("torch_dtype"))
        model = source.load_pretrained(**{"dtype": "auto", **options}).eval()
    else:
        asked = {**options, "revision": revision, "trust_remote_code": trust_remote_code}
        named = ", ".join(name for name, value in asked.items() if value)
        if named:
            raise SettingsError(f"{named} would change how a model is loaded, and this one is loaded already")
        origin = Path(str(getattr(model, "name_or_path", "") or ""))
        folder = origin if origin.name and origin.is_dir() else None
        policy = _policy(model.config, folder, factors, "the model")
    model.longrope = attach(model, policy, mode=mode, window=window)
    return model


def _policy(
    config: Any, folder: Path | None, factors: str | Path | RopeFactors | RopePolicy | None, name: str
) -> RopePolicy:
    rope = read_rope(config, folder)
    policy: RopePolicy
    if isinstance(factors, str | Path):
        factors = load_factors(factors)
    if factors is None:
        if not rope.is_scaled:
            raise SettingsError(f"{name} has plain RoPE and no longrope.json; give factors=, a file or a schedule")
        policy = rope.policy
    elif isinstance(factors, RopeFactors):
        factors.check_fits(rope.rope_theta, rope.rotary_dim)
        policy = rope.extended_by(factors)
    else:
        policy = factors
    if isinstance(policy, FactorSchedule):
        check_attention_span(config, policy.windows[-1].max_length)
    return policy
