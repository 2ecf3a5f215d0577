"""``longrope evaluate`` and ``longrope compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from longrope.cli import evaluation_options as e
from longrope.cli import options as o
from longrope.cli.shared import given_command, sharing
from longrope.exceptions import SettingsError

if TYPE_CHECKING:
    from longrope.evaluation.settings import EvaluationSettings
    from longrope.evaluation.suites import SuiteSettings


class _Suites(TyperGroup):
    """The suites, which an unknown name lists."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise SettingsError(f"suite {cmd_name!r} is not known; use {', '.join(sorted(self.commands))}")
        return found


evaluate = typer.Typer(cls=_Suites, help="Measure a model, as it is or under factors.", no_args_is_help=True)


@evaluate.callback()
def _evaluate() -> None:
    """Measure a model, as it is or under factors."""


@evaluate.command()
@sharing(e.shared_options)
@sharing(e.document_options)
@sharing(e.protocol_options)
def perplexity(**options: Any) -> None:
    """Perplexity at several lengths, per token and per byte, with its spread over documents."""
    _run_perplexity(options)


@evaluate.command()
@sharing(e.shared_options)
def passkey(
    trials: Annotated[int, typer.Option(help="Texts at each length.")] = 10,
    introduction: Annotated[bool, typer.Option(help="Announce the pass key at the start, as in the paper.")] = True,
    **options: Any,
) -> None:
    """Five digits hidden in a text that says nothing, and asked for at its end."""
    from longrope.evaluation.settings import PasskeySettings

    settings = _settings(options)
    suite = PasskeySettings(trials=trials, introduction=introduction)
    _run(settings, suite)


@evaluate.command()
@sharing(e.shared_options)
def needle(
    haystack: Annotated[
        str,
        typer.Option(
            help="Real text to hide numbers in: a .txt, .md, .jsonl or .parquet file, a folder of them, or a Hugging "
            "Face dataset id.",
            metavar="PATH",
            rich_help_panel=e.DATA,
        ),
    ],
    field: o.Field = "text",
    split: o.Split = "train",
    revision: o.DataRevision = None,
    config: o.DataConfig = None,
    depth_interval: Annotated[float, typer.Option(help="Percent of the text from one depth to the next.")] = 10,
    digits: e.Digits = 7,
    trials: Annotated[int, typer.Option(help="Texts at each length and depth.")] = 1,
    **options: Any,
) -> None:
    """A number hidden at every depth of real text, and asked for at its end (needle in a haystack)."""
    from longrope.evaluation.settings import NeedleSettings

    settings = _settings(options)
    suite = NeedleSettings(
        haystack=haystack,
        field=field,
        split=split,
        revision=revision,
        config=config,
        depth_interval=depth_interval,
        digits=digits,
        trials=trials,
    )
    _run(settings, suite)


@evaluate.command()
@sharing(e.shared_options)
@sharing(e.record_options)
def multi_document_qa(
    lengths: e.MaxLength,
    documents: Annotated[
        str, typer.Option(help="Numbers of documents, the one with the answer included.")
    ] = "20,30,50,100",
    positions: Annotated[
        str, typer.Option(help="Where the one with the answer stands: start, middle, end, or 0 to 1.")
    ] = "0,0.5,1",
    max_new_tokens: e.MaxNewTokens = 100,
    question_field: Annotated[str, e.field_of("the question")] = "question",
    answers_field: Annotated[str, e.field_of("an answer, or a list of right ones")] = "answers",
    contexts_field: Annotated[str, e.field_of("all documents, marked by isgold or hasanswer")] = "ctxs",
    document_field: Annotated[
        str, e.field_of("the document with the answer, where there is no such list")
    ] = "document",
    distractors_field: Annotated[str, e.field_of("a list of other documents beside it")] = "distractors",
    **options: Any,
) -> None:
    """Questions whose answer stands in one of many documents: exact match by number of documents and position."""
    from longrope.evaluation.task_settings import MultiDocumentQASettings, parse_documents, parse_positions

    settings = _settings_up_to(lengths, options)
    suite = MultiDocumentQASettings(
        **_task(options),
        max_new_tokens=max_new_tokens,
        documents=parse_documents(documents),
        positions=parse_positions(positions),
        question=question_field,
        answers=answers_field,
        contexts=contexts_field,
        document=document_field,
        distractors=distractors_field,
    )
    _run(settings, suite)


@evaluate.command()
@sharing(e.shared_options)
@sharing(e.record_options)
def summarisation(
    lengths: e.MaxLength,
    max_new_tokens: e.MaxNewTokens = 512,
    document_field: Annotated[str, e.field_of("the document")] = "document",
    summary_field: Annotated[str, e.field_of("its summary")] = "summary",
    prompt: Annotated[
        str, typer.Option(help="What is read, with {document} in it (the words of fine-tuning on chapter summaries).")
    ] = "",
    stemmer: Annotated[bool, typer.Option("--stemmer", help="Compare words by their stems.")] = False,
    **options: Any,
) -> None:
    """Summaries of documents, compared with written ones by ROUGE-1, ROUGE-2 and ROUGE-L."""
    from longrope.data.templates.chapter_summary import PROMPT
    from longrope.evaluation.task_settings import SummarisationSettings

    settings = _settings_up_to(lengths, options)
    suite = SummarisationSettings(
        **_task(options),
        max_new_tokens=max_new_tokens,
        document=document_field,
        summary=summary_field,
        prompt=prompt or PROMPT,
        stemmer=stemmer,
    )
    _run(settings, suite)


@evaluate.command()
@sharing(e.shared_options)
def harness(
    tasks: Annotated[
        str, typer.Option(help="Tasks, groups or tags of lm-evaluation-harness, or YAML files; comma-separated.")
    ],
    include_path: Annotated[
        list[str] | None, typer.Option(help="A folder with further tasks (YAML); may be repeated.", metavar="DIR")
    ] = None,
    max_length: Annotated[
        str, typer.Option(help="Tokens of an input at most (the longest window).", metavar="LENGTH")
    ] = "",
    lengths: Annotated[
        str,
        typer.Option(help="Lengths that ruler makes its texts for: 4k,32k (the longest input).", metavar="LENGTHS"),
    ] = "",
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each question (as each task says).")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task (all).")] = None,
    batch_size: Annotated[int, typer.Option(help="Inputs of a batch at most; long ones go alone.")] = 8,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Write prompts as a conversation, by the tokenizer's template.")
    ] = False,
    metadata: Annotated[
        str, typer.Option(help="What tasks that make their own texts take beside the lengths (JSON).", metavar="JSON")
    ] = "",
    **options: Any,
) -> None:
    """Benchmarks of lm-evaluation-harness, such as arc_challenge, hellaswag, mmlu, truthfulqa and ruler.

    Tasks are downloaded from the Hugging Face hub when they are first used; ruler fetches the texts it hides needles
    in from the web, too.
    """
    from longrope.evaluation.settings import HarnessSettings
    from longrope.lengths import parse_length, parse_lengths

    suite = HarnessSettings(
        tasks=o.names(tasks),
        include_path=tuple(include_path or ()),
        max_length=parse_length(max_length) if max_length else None,
        lengths=parse_lengths(lengths),
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        chat_template=chat_template,
        metadata=o.json_object(metadata, "--metadata"),
    )
    _run(_settings({**options, "lengths": ""}), suite)


@evaluate.command()
@sharing(e.shared_options)
@sharing(e.document_options)
def needle_perplexity(digits: e.Digits = 7, **options: Any) -> None:
    """Perplexity of the answer to a question about the start of a long text (LongRoPE2)."""
    from longrope.evaluation.settings import NeedlePerplexitySettings

    settings = _settings(options)
    suite = NeedlePerplexitySettings(digits=digits, **_chosen_documents(options))
    _run(settings, suite)


@sharing(e.shared_options)
@sharing(e.document_options)
@sharing(e.protocol_options)
def compare(methods: e.Methods = "none,pi,ntk,dynamic-ntk,yarn,longrope", **options: Any) -> None:
    """One table of the perplexity of all methods."""
    _run_perplexity({**options, "methods": methods})


def _run_perplexity(options: dict[str, Any]) -> None:
    from longrope.evaluation.settings import PerplexitySettings
    from longrope.lengths import parse_length

    settings = _settings(options)
    suite = PerplexitySettings(
        document_length=parse_length(options["document_length"]) if options["document_length"] else None,
        **{name: options[name] for name in ("protocol", "stride", "last")},
        **_chosen_documents(options),
    )
    _run(settings, suite)


def _chosen_documents(options: dict[str, Any]) -> dict[str, Any]:
    """What suites that read long documents share, as their settings call it."""
    names = ("field", "split", "revision", "config", "samples", "concatenate", "max_documents")
    return {"source": options["data"], **{name: options[name] for name in names}}


def _settings(options: dict[str, Any]) -> EvaluationSettings:
    """What all suites share, from a command's options by their Python names."""
    from longrope.evaluation.settings import EvaluationSettings
    from longrope.lengths import parse_lengths

    return EvaluationSettings(
        model=o.model_name(options["model"]),
        output=options["output"],
        lengths=parse_lengths(options["lengths"]),
        factors=options["factors"],
        methods=o.names(options["methods"]),
        execution=o.execution_settings(options),
        seed=options["seed"],
        revision=options["model_revision"],
        resume=options["resume"],
    )


def _settings_up_to(max_length: str, options: dict[str, Any]) -> EvaluationSettings:
    """What all suites share, where the data decide the lengths of texts."""
    from longrope.lengths import parse_length

    return _settings({**options, "lengths": str(parse_length(max_length))})


def _task(options: dict[str, Any]) -> dict[str, Any]:
    """The settings of suites that ask about documents, from their shared options."""
    names = ("samples", "split", "revision", "config", "chat_template")
    return {"source": options["data"], **{name: options[name] for name in names}}


def _run(settings: EvaluationSettings, suite: SuiteSettings) -> None:
    from longrope.cli.outcome import print_evaluation
    from longrope.cli.progress import ConsoleProgress
    from longrope.evaluation.suites import evaluate as run_evaluation

    with ConsoleProgress() as progress:
        report = run_evaluation(settings, suite, progress, given_command())
    print_evaluation(report)
