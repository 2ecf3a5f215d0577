"""Tasks of lm-evaluation-harness by name: groups and tags are taken apart, so that each task is an item of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import SettingsError

_SUFFIXES = (".yaml", ".yml")
_GROUP_FIELDS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}


@dataclass(frozen=True)
class HarnessTask:
    """A task to run.

    Attributes:
        name: as the harness has it, or the path as it was given.
        source: its YAML file, relative to the harness's own tasks where it is one of those; the name of a group that
            changes its tasks and so cannot be taken apart.
        whole_group: whether it is such a group.
        makes_texts: whether it makes its texts itself, for a length (RULER).
    """

    name: str
    source: str
    whole_group: bool = False
    makes_texts: bool = False


@dataclass(frozen=True)
class HarnessGroup:
    """A group whose score is the mean over its tasks.

    Attributes:
        tasks: names of all tasks in it, those of inner groups too.
        by_size: of each metric, whether tasks count by their numbers of documents rather than alike.
    """

    name: str
    tasks: tuple[str, ...]
    by_size: Mapping[str, bool]


def find_tasks(
    names: Sequence[str], include_path: Sequence[str] = (), note: Callable[[str], None] = lambda line: None
) -> tuple[tuple[HarnessTask, ...], tuple[HarnessGroup, ...]]:
    """The tasks behind names, each once, and the groups among these, inner ones first.

    The harness's own list, which takes it half a minute to read, is looked at only for names that the folders of
    ``include_path`` do not hold.

    Args:
        note: is told before that.

    Raises:
        SettingsError: if a name is not known, or a file or folder cannot be used.
    """
    for folder in include_path:
        if not Path(folder).is_dir():
            raise SettingsError(f"folder {folder} of further tasks does not exist; give one with YAML files of tasks")
    files = [name for name in names if name.endswith(_SUFFIXES)]
    found = {name: _from_file(name) for name in files}
    named = [name for name in names if name not in found]
    index = read_index(include_path, defaults=False) if include_path else {}
    if not set(_reachable(index, named)) <= index.keys():
        note("reading the list of tasks of lm-evaluation-harness")
        index = read_index(include_path)
    for name in named:
        if name not in index:
            near = difflib.get_close_matches(name, index, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm-eval ls tasks`"
            raise SettingsError(
                f"task {name!r} is not known to lm-evaluation-harness; {hint} Tasks of your own are given by their "
                "YAML file, or their folder by --include-path"
            )
    groups: dict[str, HarnessGroup] = {}
    for name in names:
        for task in [found[name]] if name in files else _take_apart(index, name, groups):
            found[task.name] = task
    wanted = {task.name: task for task in found.values()}
    return tuple(wanted.values()), tuple(groups.values())


def read_index(include_path: Sequence[str], defaults: bool = True) -> dict[str, Any]:
    """What the harness knows of every task, group and tag, by name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(include_path), include_defaults=defaults)
    return dict(manager.task_index)


def tasks_folder() -> Path:
    """Where the harness keeps its own tasks."""
    from lm_eval import tasks

    assert tasks.__file__ is not None
    return Path(tasks.__file__).parent


def _from_file(path: str) -> HarnessTask:
    import yaml
    from lm_eval.tasks._index import TaskIndex

    if not Path(path).is_file():
        raise SettingsError(f"task file {path} does not exist; give a YAML file, or the name of a task")
    try:
        entry = TaskIndex.entry_from_path(Path(path))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"task file {path} cannot be used: {reason}") from None
    if entry is None or entry.kind.name == "GROUP":
        raise SettingsError(f"task file {path} holds no task; give one with `task: NAME`, groups by --include-path")
    # Workers on a cluster run in folders of their own.
    return HarnessTask(path, str(Path(path).resolve()))


def _members(entry: Any) -> list[str] | None:
    """The names that a group or a tag stands for; None for a task, or a group that changes its tasks."""
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return None
    members = entry.cfg.get("task")
    plain = isinstance(members, list) and all(isinstance(member, str) for member in members)
    return list(members) if plain and entry.cfg.keys() <= _GROUP_FIELDS else None


def _reachable(index: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Names and all that these stand for."""
    for name in names:
        yield name
        if name in index:
            yield from _reachable(index, _members(index[name]) or ())


def _take_apart(index: Mapping[str, Any], name: str, groups: dict[str, HarnessGroup]) -> list[HarnessTask]:
    """The tasks behind a name; groups that are met on the way are added to ``groups``."""
    entry, members = index[name], _members(index[name])
    if members is None or any(member not in index for member in members):
        if entry.kind.name == "GROUP":
            return [HarnessTask(name, name, whole_group=True)]
        path = Path(entry.yaml_path)
        own = tasks_folder()
        source = path.relative_to(own) if path.is_relative_to(own) else path.resolve()
        return [HarnessTask(name, str(source), makes_texts="custom_dataset" in (entry.cfg or {}))]
    tasks = [task for member in members for task in _take_apart(index, member, groups)]
    metrics = entry.cfg.get("aggregate_metric_list") if entry.kind.name == "GROUP" else None
    if metrics:
        by_size = {
            str(metric["metric"]): bool(metric.get("weight_by_size", True))
            for metric in (metrics if isinstance(metrics, list) else [metrics])
        }
        groups[name] = HarnessGroup(name, tuple(dict.fromkeys(task.name for task in tasks)), by_size)
    return tasks
