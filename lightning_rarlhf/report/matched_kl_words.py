"""What a comparison at equal KL lets one say, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_rarlhf.functional.statistics import LEAST_TAIL, SMALL, SMALL_NOTE
from lightning_rarlhf.report.matched_kl import STATISTICS, Match, MatchedKL, Stretch


def statements(result: MatchedKL) -> list[str]:
    """Who is ahead at which KL, a sentence a line."""
    said = [line for match in result.matches for line in _statements_of(match, result)]
    # without a KL at which runs are near, or an interval, there is no band to speak of
    bands = (len(STATISTICS) - len(result.few)) * sum(bool(match.supported.any()) for match in result.matches)
    if bands:
        said += [_errors(bands, result.confidence), _covered(result)]
        said += [SMALL_NOTE] if result.prompts < SMALL else []
    return said


def _errors(bands: int, confidence: float) -> str:
    """A band is simultaneous over KL, not over methods and statistics."""
    each = f"with chance {100 * (1 - confidence):g} %"
    return f"These are {bands} bands, each of which errs somewhere {each}." if bands > 1 else f"This band errs {each}."


def _covered(result: MatchedKL) -> str:
    if not result.unseeded and not result.seeded:
        return "These intervals cover prompts; all weights are the reference's, which no training seed changes."
    if not result.unseeded:
        return "These intervals cover prompts and training seeds (Student's t over the seeds of each point)."
    return (
        f"One training run a point of {', '.join(result.unseeded)}: these intervals cover prompts, not training seeds, "
        "there; another training may change who is ahead."
    )


def _statements_of(match: Match, result: MatchedKL) -> Iterator[str]:
    if not len(match.kl):
        yield (
            f"{match.first} was run at {_nats(match.first_range)}, {match.second} at {_nats(match.second_range)}: "
            "the ranges do not overlap, nothing can be said at equal KL."
        )
        return
    yield (
        f"Equal KL of {match.first} and {match.second}: {_nats((float(match.kl[0]), float(match.kl[-1])))} "
        f"({match.first} was run at {_nats(match.first_range)}, {match.second} at {_nats(match.second_range)})."
    )
    names = {"mean": "Mean reward", "tail": f"Mean of the worst {100 * result.alpha:g} %"}
    for statistic in STATISTICS:
        if statistic in result.few:
            why = f"a run has fewer than {LEAST_TAIL} prompts {result.few[statistic]}"
            yield f"{names[statistic]}: nothing is claimed, as {why}: too few for an interval."
        else:
            yield f"{names[statistic]}: {_ahead(match, statistic)}."


def _ahead(match: Match, statistic: str) -> str:
    found = match.stretches(statistic)
    said = [
        f"{each.ahead} is ahead at {_nats((each.low, each.high))}{_by(match, statistic, each)}"
        for each in found
        if each.ahead
    ]
    level = [_nats((each.low, each.high)) for each in found if each.supported and not each.ahead]
    far = [_nats((each.low, each.high)) for each in found if not each.supported]
    said += [f"no clear difference at {', '.join(level)}"] if level else []
    said += [f"nothing is claimed at {', '.join(far)}, where runs are too far apart to interpolate"] if far else []
    return "; ".join(said)


def _by(match: Match, statistic: str, stretch: Stretch) -> str:
    """The lead in the middle of a stretch, with its band."""
    middle = int(np.abs(match.kl - (stretch.low + stretch.high) / 2).argmin())
    band = match.difference[statistic]
    sign = 1 if stretch.ahead == match.second else -1
    lead, ends = sign * band.estimate[middle], sorted(sign * float(end[middle]) for end in (band.low, band.high))
    return f" (by {lead:.3g}, {ends[0]:.3g} to {ends[1]:.3g}, at {match.kl[middle]:.3g} nats)"


def _nats(span: tuple[float, float]) -> str:
    return f"{span[0]:.3g} to {span[1]:.3g} nats" if span[1] > span[0] else f"{span[0]:.3g} nats"
