"""``longrope finetune``."""

from __future__ import annotations

from typing import Annotated

import typer

from longrope.cli import options as o

_TRAINING, _MEMORY, _METHOD, _LAUNCH, _WATCH = "Training", "Memory and parallelism", "Method", "Launch", "Watching"


def finetune(
    model: o.Model,
    factors: o.Factors,
    data: Annotated[
        str,
        typer.Option(
            help="A mixture file (YAML), or one source: .txt, .md, .jsonl, .parquet, a folder, a Hugging Face dataset.",
            metavar="PATH",
            rich_help_panel="Data",
        ),
    ],
    seq_length: Annotated[
        str, typer.Option(help="Tokens of a training segment: 2048, 128k.", metavar="LENGTH", rich_help_panel=_TRAINING)
    ],
    output: o.Output,
    windows: Annotated[
        str,
        typer.Option(
            help="Lengths whose windows are trained in turn, such as 4k,128k,256k: short ones in segments of their own "
            "length, those beyond the factors ahead, under YaRN's (that of a segment only).",
            metavar="LENGTHS",
            rich_help_panel=_TRAINING,
        ),
    ] = "",
    attention_factor: Annotated[
        str,
        typer.Option(
            help="own: each window that of its factors; shared: short windows that of the longest, for plain "
            "transformers, which has but one; or a number for all.",
            rich_help_panel=_TRAINING,
        ),
    ] = "own",
    model_revision: o.ModelRevision = None,
    field: o.Field = "text",
    split: o.Split = "train",
    steps: Annotated[int, typer.Option(help="Optimizer steps.", rich_help_panel=_TRAINING)] = 400,
    lr: Annotated[float, typer.Option(help="Highest learning rate.", rich_help_panel=_TRAINING)] = 2e-5,
    schedule: Annotated[
        str, typer.Option(help="linear (decay), cosine or constant.", rich_help_panel=_TRAINING)
    ] = "linear",
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.", rich_help_panel=_TRAINING)] = 20,
    betas: Annotated[tuple[float, float], typer.Option(help="Betas of AdamW.", rich_help_panel=_TRAINING)] = (
        0.9,
        0.95,
    ),
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=_TRAINING)] = 0.0,
    max_grad_norm: Annotated[
        float, typer.Option(help="Gradients are clipped to this norm; 0 for no clipping.", rich_help_panel=_TRAINING)
    ] = 1.0,
    global_batch: Annotated[
        int, typer.Option(help="Segments of a step, over all processes.", rich_help_panel=_TRAINING)
    ] = 32,
    micro_batch: Annotated[
        int, typer.Option(help="Segments that a process holds at a time.", rich_help_panel=_MEMORY)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Decides the order of the data.", rich_help_panel=_TRAINING)] = 0,
    method: Annotated[
        str, typer.Option(help="full, attention (its projections only), lora or qlora.", rich_help_panel=_METHOD)
    ] = "full",
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.", rich_help_panel=_METHOD)] = 8,
    lora_alpha: Annotated[int, typer.Option(help="Adapters are scaled by alpha / rank.", rich_help_panel=_METHOD)] = 16,
    lora_targets: Annotated[
        str,
        typer.Option(
            help="Layers that get an adapter, comma-separated, or all-linear; by default those of attention, however "
            "the model calls them.",
            rich_help_panel=_METHOD,
        ),
    ] = "q_proj,k_proj,v_proj,o_proj",
    plain_lora: Annotated[
        bool,
        typer.Option(
            "--plain-lora",
            help="Leave embeddings and norms frozen; a longer window needs them.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    attention: Annotated[
        str,
        typer.Option(help="full, or LongLoRA's shifted-sparse while training.", rich_help_panel=_METHOD),
    ] = "full",
    group: Annotated[
        str, typer.Option(help="Tokens of a group of shifted-sparse (a quarter of a segment).", rich_help_panel=_METHOD)
    ] = "",
    kernel: Annotated[
        str,
        typer.Option(help="auto, sdpa, flash_attention_2 or flash_attention_3.", rich_help_panel=_MEMORY),
    ] = "auto",
    zero: Annotated[
        int | None,
        typer.Option(
            help="DeepSpeed ZeRO stage, 0 to 3; 0 needs no DeepSpeed [0 on one process, otherwise 3].",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    offload: Annotated[
        str, typer.Option(help="What ZeRO keeps in host memory: none, optimizer, all.", rich_help_panel=_MEMORY)
    ] = "none",
    sp: Annotated[
        int, typer.Option(help="Processes that share one sequence (DeepSpeed Ulysses).", rich_help_panel=_MEMORY)
    ] = 1,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.", rich_help_panel=_MEMORY)] = "auto",
    tf32: Annotated[bool, typer.Option(help="TF32 for float32 products on GPUs.", rich_help_panel=_MEMORY)] = True,
    checkpointing: Annotated[
        bool,
        typer.Option(help="Compute each layer again in the backward pass.", rich_help_panel=_MEMORY),
    ] = True,
    offload_activations: Annotated[
        bool,
        typer.Option(
            "--offload-activations", help="Hold checkpointed activations on the host.", rich_help_panel=_MEMORY
        ),
    ] = False,
    tile_mlp: Annotated[
        str, typer.Option(help="Tokens that pass an MLP at a time (all).", rich_help_panel=_MEMORY)
    ] = "",
    tile_loss: Annotated[
        str, typer.Option(help="Tokens whose logits exist at a time [128 MiB of logits].", rich_help_panel=_MEMORY)
    ] = "",
    launcher: Annotated[
        str, typer.Option(help="auto, none (this process), torchrun or ray.", rich_help_panel=_LAUNCH)
    ] = "auto",
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of each node (all); processes on a CPU (1).", rich_help_panel=_LAUNCH)
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines, by Ray.", rich_help_panel=_LAUNCH)] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="An existing Ray cluster: auto, or host:port.", rich_help_panel=_LAUNCH)
    ] = None,
    max_failures: Annotated[
        int, typer.Option(help="Times that Ray starts anew after workers died.", rich_help_panel=_LAUNCH)
    ] = 3,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.", rich_help_panel=_LAUNCH)] = "auto",
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0 for the last only.", rich_help_panel=_WATCH)
    ] = 50,
    save_limit: Annotated[int, typer.Option(help="Newest checkpoints to keep.", rich_help_panel=_WATCH)] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output folder.", rich_help_panel=_WATCH)
    ] = False,
    log_steps: Annotated[int, typer.Option(help="Steps between lines.", rich_help_panel=_WATCH)] = 1,
    report_to: Annotated[
        str,
        typer.Option(help="tensorboard, wandb, trackio, ...; comma-separated (none).", rich_help_panel=_WATCH),
    ] = "",
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Text whose perplexity is measured before and after.", metavar="PATH", rich_help_panel=_WATCH
        ),
    ] = None,
    held_out_lengths: Annotated[
        str,
        typer.Option(
            help="Lengths to measure, such as 4k,128k (pretraining and training length).", rich_help_panel=_WATCH
        ),
    ] = "",
    held_out_samples: Annotated[
        int, typer.Option(help="Documents to measure, as long as the longest length.", rich_help_panel=_WATCH)
    ] = 5,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train a model under its new factors: all of it, its attention, LoRA or QLoRA, on one GPU or many."""
    from longrope.cli.outcome import print_finetune
    from longrope.finetune.launch import LaunchSettings
    from longrope.finetune.run import finetune as run_finetune
    from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings
    from longrope.lengths import parse_length, parse_lengths

    def tokens(text: str) -> int:
        return parse_length(text) if text not in ("", "0") else 0

    settings = FinetuneSettings(
        model=o.model_name(model),
        factors=factors,
        data=data,
        output=output,
        seq_length=parse_length(seq_length),
        windows=parse_lengths(windows),
        attention_factor=_number(attention_factor),
        revision=model_revision,
        trust_remote_code=trust_remote_code,
        field=field,
        split=split,
        steps=steps,
        learning_rate=lr,
        schedule=schedule,
        warmup=warmup,
        betas=betas,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        global_batch=global_batch,
        micro_batch=micro_batch,
        zero=zero,
        offload=offload,
        sp=sp,
        precision=precision,
        tf32=tf32,
        method=method,
        attention=attention,
        group=tokens(group),
        kernel=kernel,
        adapter=AdapterSettings(
            rank=lora_rank,
            alpha=lora_alpha,
            targets=_names(lora_targets),
            train_embeddings_and_norms=not plain_lora,
        ),
        memory=MemorySettings(
            checkpoint_activations=checkpointing,
            offload_activations=offload_activations,
            tile_mlp=tokens(tile_mlp),
            tile_loss=tokens(tile_loss),
        ),
        held_out=HeldOutSettings(
            source=held_out,
            field=field,
            split=split,
            lengths=parse_lengths(held_out_lengths),
            samples=held_out_samples,
        ),
        save_steps=save_steps,
        save_limit=save_limit,
        log_steps=log_steps,
        report_to=_names(report_to),
        seed=seed,
    )
    launching = LaunchSettings(
        launcher=launcher,
        gpus=gpus,
        nodes=nodes,
        ray_address=ray_address,
        max_failures=max_failures,
        device=device,
    )
    report = run_finetune(settings, launching, resume)
    if report.speaks:
        print_finetune(report)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> str | float:
    """A number where the text is one; settings refuse other text that they do not know."""
    try:
        return float(text)
    except ValueError:
        return text
