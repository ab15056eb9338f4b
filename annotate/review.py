"""The paintings that the model is least sure of, back to a person: pre-annotated, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from annotate.access import connect
from annotate.config import ReviewConfig
from annotate.errors import UserError
from annotate.files import sha256
from annotate.lock import alone
from annotate.paintings import Painting, read_index
from annotate.predictions import AttachResult, attach, confidence
from annotate.push import send, tasks_by_key
from annotate.server import Login
from annotate.workspace import Workspace

RANKED_BY = ("segment-evaluate", "segment-pseudo-label")  # reports that may hold a `ranking` of keys
_APART = 1e-4  # least distance of two scores, so that the queue keeps their order


@dataclass(frozen=True)
class ReviewResult:
    """What a review sent."""

    url: str  # of the queue
    project: int
    keys: tuple[str, ...]  # the least sure first
    sure: tuple[float | None, ...]  # how sure the model is of each, 0 to 1
    added: int  # tasks made now
    there: int  # tasks that were there before
    predictions: AttachResult
    problems: tuple[str, ...]  # one line for each painting left out
    login: Login | None  # of the embedded server


def review(workspace: Workspace, config: ReviewConfig) -> ReviewResult:
    """Make sure that the `count` least sure paintings that nobody annotated lie in Label Studio, pre-annotated.

    Run again, it adds nothing until some were corrected or labelled anew. A painting stays the model's to label
    until a pull finds it corrected: then its hand mask counts, and the list says so.

    Raises:
        UserError: no pseudo masks, a push or another review at the same time, or the server's refusal.
    """
    index = read_index(workspace)
    ranked = least_sure(workspace, index)
    if not ranked and workspace.keys_with_mask("pseudo"):
        raise UserError(
            f"{workspace.masks('pseudo')}: nothing to review, all that have a mask there are annotated by hand; "
            "`tool segment train` learns from them"
        )
    if not ranked:
        raise UserError(
            f"{workspace.masks('pseudo')}: no pseudo masks to review; run `tool segment pseudo-label` first"
        )
    with alone(workspace):
        return _review(workspace, config, index, ranked)


def _review(
    workspace: Workspace, config: ReviewConfig, index: Mapping[str, Painting], ranked: Sequence[str]
) -> ReviewResult:
    """What a review does, once nobody else does it."""
    studio = connect(workspace, config.url)
    try:
        project, _ = studio.open_project(workspace)
        there = tasks_by_key(studio, project, workspace)
        wanted = [key for key in ranked if key not in there or not there[key].annotations][: config.count]
        fitting, problems = _as_listed(workspace, [index[key] for key in wanted if key not in there])
        added, failed = send(studio, project, fitting, workspace, workspace.settings().max_side)
        sure = {key: confidence(workspace, key) for key in wanted}
        chosen = {key: index[key] for key in wanted}
        attached = attach(workspace, studio, project, chosen, config.regions, queue_scores(sure))
        tab = studio.queue_by_score(project)
    finally:
        studio.close()
    result = ReviewResult(
        f"{studio.url}/projects/{project}/data?tab={tab}",
        project,
        tuple(wanted),
        tuple(sure.values()),
        added,
        sum(key in there for key in wanted),
        attached,
        (*problems, *failed, *attached.problems),
        studio.login,
    )
    figures = {"wanted": len(wanted), "added": added, "there": result.there, "url": result.url}
    workspace.save_report("annotate-review", figures | {"keys": wanted, "left_out": len(result.problems)})
    return result


def least_sure(workspace: Workspace, index: Mapping[str, Painting]) -> list[str]:
    """Keys with a pseudo mask and no hand mask, the least sure first.

    In the order of the newest `ranking` that a step left; without one, and for keys that it does not name, by
    the mean confidence. What has none comes last.

    Raises:
        UserError: a damaged pseudo mask or confidence map.
    """
    hand = set(workspace.keys_with_mask("hand"))
    keys = [key for key in workspace.keys_with_mask("pseudo") if key in index and key not in hand]
    place = {key: number for number, key in reversed(list(enumerate(_ranking(workspace))))}
    sure = {key: confidence(workspace, key) for key in keys if key not in place}

    def order(key: str) -> tuple[int, float, str]:
        if key in place:
            return 0, place[key], key
        found = sure[key]
        return (2, 0.0, key) if found is None else (1, found, key)

    return sorted(keys, key=order)


def queue_scores(sure: Mapping[str, float | None]) -> dict[str, float]:
    """Scores that keep the given order in a queue by score: the confidences, dealt out from the lowest."""
    scores: dict[str, float] = {}
    last = 0.0
    for key, found in zip(sure, sorted(one or 0.0 for one in sure.values()), strict=True):
        last = max(round(found, 4), last + _APART)
        scores[key] = last
    return scores


def _ranking(workspace: Workspace) -> list[str]:
    """The keys that the newest report with a ranking names."""
    files = [workspace.reports / f"{name}.json" for name in RANKED_BY]
    newest = sorted((path for path in files if path.exists()), key=lambda path: -path.stat().st_mtime_ns)
    for path in newest:
        found = (workspace.report(path.stem) or {}).get("ranking")
        if isinstance(found, list) and found:
            return [key for key in found if isinstance(key, str)]
    return []


def _as_listed(workspace: Workspace, paintings: Sequence[Painting]) -> tuple[list[Painting], list[str]]:
    """The paintings whose file is still the one that was labelled, and a line for each other one."""
    fitting, problems = [], []
    for one in paintings:
        path = one.file(workspace)
        try:
            same = sha256(path) == one.sha256
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}); put it back or push again")
            continue
        if same:
            fitting.append(one)
        else:
            problems.append(f"{path}: changed since it was pushed; push again, and label it anew")
    return fitting, problems
