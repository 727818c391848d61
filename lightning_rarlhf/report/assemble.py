"""From a request to the finished report: read, refuse, compare, show, draw, write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.results import Run, read_run, require_comparable
from lightning_rarlhf.report.comparison import Comparison, compare, require_resamples
from lightning_rarlhf.report.document import MAIN, TEXTS, Report, write_report
from lightning_rarlhf.report.figure_distribution import draw_distribution_shift
from lightning_rarlhf.report.figure_frontier import draw_frontier, has_kl
from lightning_rarlhf.report.figure_matched import draw_matched_kl
from lightning_rarlhf.report.figure_quantile import draw_quantile_curves
from lightning_rarlhf.report.figure_score_quantile import draw_score_quantiles
from lightning_rarlhf.report.figure_training import draw_training_curves
from lightning_rarlhf.report.matched_kl import MatchedKL, match_kl, require_tail_share
from lightning_rarlhf.report.matched_kl_words import statements
from lightning_rarlhf.report.methods import Method, group, labels_of
from lightning_rarlhf.report.notes import kl_bounds, notes, one_reference
from lightning_rarlhf.report.table_terminal import print_comparison
from lightning_rarlhf.report.training_curves import read_training_curves
from lightning_rarlhf.terminal.plain_text import visible

_PICTURES = ("quantile_curve", "score_quantiles", "distribution_shift", "frontier", "matched_kl", "training_curves")
Labelled = tuple[str, tuple[Path, ...]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    runs: tuple[Path, ...]
    names: tuple[Labelled, ...] = ()
    """labels of runs; runs that are not among `runs` are added"""
    sweeps: tuple[Labelled, ...] = ()
    """runs at several KL, by method"""
    output: Path
    alpha: float = 0.1
    resamples: int = 2000
    seed: int = 0
    figures: bool = True


def assemble(request: Request) -> list[Path]:
    """Make the report and return the files written.

    Raises:
        UserError: runs that cannot be read or compared, or arguments out of range; nothing is written then.
    """
    if not 0 < request.alpha <= 1:
        raise UserError(f"--alpha: got {request.alpha:g}, expected more than 0 and at most 1")
    methods, sweeps = _read(request)
    everything = [*methods, *sweeps]
    require_comparable([run for method in everything for run in method.runs])
    require_tail_share(everything[0].runs[0], request.alpha)
    if request.seed < 0:
        raise UserError(f"--seed: got {request.seed}, expected a number from 0")
    if sweeps:
        require_resamples(request.resamples, sweeps[0].runs[0].confidence)
    comparison = compare(methods, resamples=request.resamples, seed=request.seed) if methods else None
    matched = match_kl(sweeps, alpha=request.alpha, resamples=request.resamples, seed=request.seed) if sweeps else None
    remarks = [*(notes(comparison) if comparison else ()), *kl_bounds(_merged(everything))]
    _show(comparison, matched, remarks)
    request.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.output, prefix=".report-") as scratch:
        staged = replace(request, output=Path(scratch))
        pictures = list(_pictures(staged, methods, sweeps, matched)) if request.figures else []
        report = Report(
            runs=_merged(everything),
            comparison=comparison,
            matched=matched,
            notes=remarks,
            pictures=[path for path in pictures if path.suffix == ".png"],
        )
        ready = [*pictures, *write_report(report, staged.output)]
        return _put_in_place([path.relative_to(scratch) for path in ready], Path(scratch), request.output)


def _put_in_place(names: Sequence[Path], ready: Path, folder: Path) -> list[Path]:
    """Replace the former report; files of other names are left alone.

    Everything is written before the first file moves. The former report.md goes first and the new one comes last:
    whenever the process is killed, report.md is either missing or belongs to the files beside it.
    """
    (folder / MAIN).unlink(missing_ok=True)
    pictures = (f"figures/{name}.{kind}" for name in _PICTURES for kind in ("png", "pdf"))
    for path in {folder / name for name in (*TEXTS, *pictures)} - {folder / name for name in names}:
        path.unlink(missing_ok=True)  # of an earlier report: it would seem to belong to this one
    for name in sorted(names, key=lambda name: name == Path(MAIN)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(ready / name, folder / name)
    return [folder / name for name in names]


def _read(request: Request) -> tuple[list[Method], list[Method]]:
    """Methods of the table and methods of the sweep."""
    given = {_key(folder): label for label, folders in request.names for folder in folders}
    folders = list(dict.fromkeys([*map(_key, request.runs), *given]))
    if len(folders) < len(request.runs) + len(set(given) - set(map(_key, request.runs))):
        twice = next(run for run in request.runs if list(map(_key, request.runs)).count(_key(run)) > 1)
        raise UserError(f"{twice} is given twice; expected each run once")
    if not folders and not request.sweeps:
        raise UserError("no run given; expected RUN..., or --sweep LABEL=RUN,RUN,... of two methods")
    read = cache(read_run)  # a run may be in the table and in sweeps
    methods = group([read(folder) for folder in folders], labels_of(folders, given))
    sweeps = group(
        [read(_key(folder)) for _, runs in request.sweeps for folder in runs],
        [label for label, runs in request.sweeps for _ in runs],
        sweep=True,
    )
    return methods, sweeps


def _key(folder: Path) -> Path:
    """One spelling per folder, short where it lies below the working directory."""
    folder = folder.parent if folder.name == "results.json" else folder
    return Path(os.path.normpath(folder))


def _show(comparison: Comparison | None, matched: MatchedKL | None, remarks: Sequence[str]) -> None:
    if comparison is not None:
        print_comparison(comparison)
    for line in [*remarks, *(statements(matched) if matched else [])]:
        print(visible(line))


def _merged(methods: Sequence[Method]) -> list[Method]:
    """One entry per label; a run that several methods share, such as their start, belongs to the first one."""
    runs: dict[str, dict[Path, Run]] = {}
    seen: set[Path] = set()
    for method in methods:
        new = {run.folder: run for run in method.runs if run.folder not in seen}
        seen |= set(new)
        if new:
            runs.setdefault(method.label, {}).update(new)
    return [Method(label=label, runs=tuple(members.values())) for label, members in runs.items()]


def _pictures(
    request: Request, methods: Sequence[Method], sweeps: Sequence[Method], matched: MatchedKL | None
) -> Iterator[Path]:
    folder, resampling = request.output / "figures", {"resamples": request.resamples, "seed": request.seed}
    if methods:
        yield from draw_quantile_curves(methods, folder / "quantile_curve", **resampling)
        yield from draw_score_quantiles(methods, folder / "score_quantiles")
        yield from draw_distribution_shift(methods, folder / "distribution_shift")
    everything = _merged([*methods, *sweeps])
    if all(map(has_kl, everything)) and one_reference(everything):
        yield from draw_frontier(everything, folder / "frontier", alpha=request.alpha, **resampling)
    if matched is not None:
        yield from draw_matched_kl(matched, folder / "matched_kl", among=[method.label for method in methods])
    logged = {method.label: [read_training_curves(run.folder) for run in method.runs] for method in methods}
    curves = {label: [seed for seed in seeds if seed] for label, seeds in logged.items() if any(seeds)}
    if curves:
        labels = [method.label for method in methods]
        yield from draw_training_curves(curves, folder / "training_curves", among=labels)
