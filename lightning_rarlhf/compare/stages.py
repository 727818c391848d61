"""What a comparison consists of: every method as a row of a table, and the commands that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_rarlhf.errors import UserError

Kind = Literal["fit", "test"]
Command = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the comparison."""

    name: str
    """of its folder and on the command line"""
    label: str
    """in the report"""
    fit: str | None = None
    """configuration that is laid over the task's, or is complete, to train it; None = nothing to train"""
    test: str | None = None
    """configuration that is laid over the task's to test it; None = the task's own"""
    complete: bool = False
    """`fit` is a complete configuration, not an overlay"""
    over: str = "{task}.yaml"
    """what `fit` is laid over, if it is an overlay"""
    product: str = "huggingface"
    """what `fit` leaves in its folder, for `experts` of others"""
    seeded: bool = False
    """trained with every seed; else once"""
    starts_from: str | None = "sft"
    """method whose policy it starts from, or is applied to; None = the policy of the command line"""
    experts: tuple[tuple[str, str], ...] = ()
    """settings of `test` that name other methods' products"""
    settings: Command = ()
    """further arguments of `fit`"""
    test_settings: Command = ()
    """further arguments of `test`"""
    shown: bool = True
    """has a row in the report; else it is only a part of others"""

    @property
    def needs(self) -> tuple[str, ...]:
        """Methods whose policy must be there first; the reference of every KL is the SFT policy."""
        start = () if self.starts_from is None else (self.starts_from,)
        reference = ("sft",) if self.shown and self.name != "sft" else ()
        return tuple(dict.fromkeys([*start, *reference, *(name for _, name in self.experts)]))


# Decoding-time methods draw from the policy of the command line, the base; what they need is fitted from it, too.
_DECODING = (
    Method(name="prompted", label="prompted", test="baselines/prompted/{task}.yaml", starts_from=None),
    Method(name="self_debias", label="Self-Debias", test="baselines/self_debias/{task}.yaml", starts_from=None),
    Method(
        name="anti_expert",
        label="anti-expert",
        fit="sft/{task}.yaml",
        complete=True,
        starts_from=None,
        settings=("--data.sft_class", "unwanted"),
        shown=False,
    ),
    Method(
        name="dexperts",
        label="DExperts",
        test="baselines/dexperts/{task}.yaml",
        starts_from=None,
        experts=(("--model.method.expert", "sft"), ("--model.method.anti_expert", "anti_expert")),
    ),
    Method(
        name="class_lm",
        label="class-conditional LM",
        fit="baselines/class_lm/{task}.yaml",
        over="sft/{task}.yaml",
        starts_from=None,
        shown=False,
    ),
    Method(
        name="gedi",
        label="GeDi",
        test="baselines/gedi/{task}.yaml",
        starts_from=None,
        experts=(("--model.method.class_lm", "class_lm"),),
    ),
    Method(
        name="risk_head",
        label="risk head",
        fit="baselines/risk_head/{task}.yaml",
        product="risk_head.safetensors",
        starts_from=None,
        shown=False,
    ),
    Method(
        name="rect",
        label="RECT",
        test="baselines/rect/{task}.yaml",
        starts_from=None,
        experts=(("--model.method.head", "risk_head"),),
    ),
    *(
        Method(
            name=f"best_of_{k}",
            label=f"best of {k}",
            test="baselines/best_of_k/{task}.yaml",
            starts_from=None,
            test_settings=("--model.method.k", str(k)),
        )
        for k in (2, 4, 8, 16)
    ),
)

_POLICY = "base"
# {task} is the task's name. The order is that of the report.
METHODS = (
    Method(name="sft", label="SFT", fit="sft/{task}.yaml", complete=True, starts_from=None),
    Method(name=_POLICY, label="base", starts_from=None),
    *_DECODING,
    Method(name="rlhf", label="RLHF", fit="rlhf/{task}.yaml", seeded=True),
    Method(name="rarlhf", label="RA-RLHF", fit="{task}.yaml", complete=True, seeded=True),
    Method(
        name="quark",
        label="Quark",
        fit="baselines/quark/{task}.yaml",
        test="baselines/quark/{task}.yaml",
        seeded=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for."""

    task: str
    configs: Path
    runs: Path
    methods: tuple[str, ...] = ()
    """names of the methods wanted; what they need comes with them; empty = all"""
    seeds: int = 1
    policy: str = "gpt2"
    reward: str | None = None
    data: str | None = None
    extra: tuple[tuple[str, Command], ...] = ()
    """further arguments by tag: all, fit, test, a method's name, or name:fit and name:test"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command, and the file that says that it was done."""

    name: str
    folder: Path
    kind: Kind
    command: Command
    """arguments of train.py"""
    needs: tuple[str, ...]
    """names of the stages before it"""
    done: Path


def chosen(settings: Settings) -> list[Method]:
    """The methods asked for and those they need, in the table's order.

    Raises:
        UserError: an unknown method, or a task that has no configuration for one that was asked for by name.
    """
    table = {method.name: method for method in METHODS}
    for name in settings.methods:
        if name not in table:
            raise UserError(f"--methods: got {name!r}, expected some of {', '.join(table)}")
    wanted = list(settings.methods or table)
    for name in wanted:  # grows while it is walked
        wanted += [needed for needed in table[name].needs if needed not in wanted]
    return [method for method in METHODS if method.name in wanted]


def plan(settings: Settings) -> list[Stage]:
    """Every command of the comparison, each after those that it needs.

    Raises:
        UserError: an unknown task, method or tag.
    """
    methods = chosen(settings)
    _require_configs(settings, methods)
    stages = [stage for method in methods for stage in _stages_of(method, settings)]
    known = {tag for method in METHODS for tag in (method.name, f"{method.name}:fit", f"{method.name}:test")}
    for tag, _ in settings.extra:
        if tag not in known | {"all", "fit", "test"}:
            raise UserError(f"--with: got tag {tag!r}, expected all, fit, test, METHOD, METHOD:fit or METHOD:test")
    return stages


def report_commands(settings: Settings) -> list[Command]:
    """Arguments of `python -m lightning_rarlhf.report`, a report each, for what is done by now.

    `report` has every method and differences from SFT, which trained methods start from; `report_untrained` has the
    methods that are applied to the policy of the command line, and differences from that one.
    """
    done = {method: _tested(method, settings) for method in chosen(settings) if method.shown}
    done = {method: folders for method, folders in done.items() if folders}
    untrained = [method for method in done if method.fit is None]
    untrained.sort(key=lambda method: method.name != _POLICY)  # what differences are from stands first
    reports = {"report": list(done)}
    if len(untrained) > 1 and untrained[0].name == _POLICY:
        reports["report_untrained"] = untrained
    return [
        (
            *(word for method in methods for word in ("--name", f"{method.label}={','.join(map(str, done[method]))}")),
            *("--output", str(settings.runs / name)),
        )
        for name, methods in reports.items()
        if methods
    ]


def _tested(method: Method, settings: Settings) -> list[Path]:
    return [folder for folder, _ in _runs_of(method, settings) if (folder / "results.json").is_file()]


def _stages_of(method: Method, settings: Settings) -> Iterable[Stage]:
    for folder, seed in _runs_of(method, settings):
        suffix = f" seed {seed}" if method.seeded else ""
        made = folder / method.product
        before = tuple(f"{needed}: fit" for needed in method.needs)
        if method.fit is not None:
            yield Stage(
                name=f"{method.name}{suffix}: fit",
                folder=folder,
                kind="fit",
                command=("fit", *_fit_arguments(method, settings, folder, seed)),
                needs=tuple(f"{needed}: fit" for needed in method.needs if needed != method.name),
                done=made if made.suffix else made / "config.json",
            )
            before = (*before, f"{method.name}{suffix}: fit")
        if method.shown:
            yield Stage(
                name=f"{method.name}{suffix}: test",
                folder=folder,
                kind="test",
                command=("test", *_test_arguments(method, settings, folder)),
                needs=before,
                done=folder / "results.json",
            )


def _fit_arguments(method: Method, settings: Settings, folder: Path, seed: int) -> Command:
    assert method.fit is not None
    own = _config(settings, method.fit)
    configs = own if method.complete else (*_config(settings, method.over), *own)
    rewarded = not any(name.startswith("sft/") for name in (method.fit, method.over))
    return (
        *configs,
        *("--model.policy.pretrained", _start(method, settings)),
        *_data(settings),
        *(_reward(settings) if rewarded else ()),
        *("--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)),
        *method.settings,
        *_extra(method, "fit", settings),
    )


def _test_arguments(method: Method, settings: Settings, folder: Path) -> Command:
    overlay = () if method.test is None else _config(settings, method.test)
    policy = str(folder / "huggingface") if method.fit is not None else _start(method, settings)
    products = {method.name: method.product for method in METHODS}
    experts = [word for key, name in method.experts for word in (key, str(settings.runs / name / products[name]))]
    return (
        *(*_config(settings, "{task}.yaml"), *overlay),
        *("--model.policy.pretrained", policy, "--model.reference", str(settings.runs / "sft" / "huggingface")),
        *_data(settings),
        *_reward(settings),
        *experts,
        *method.test_settings,
        *("--trainer.default_root_dir", str(folder)),
        *_extra(method, "test", settings),
    )


def _runs_of(method: Method, settings: Settings) -> list[tuple[Path, int]]:
    folder = settings.runs / method.name
    return [(folder / f"seed_{seed}", seed) for seed in range(settings.seeds)] if method.seeded else [(folder, 0)]


def _start(method: Method, settings: Settings) -> str:
    if method.starts_from is None:
        return settings.policy
    return str(settings.runs / method.starts_from / "huggingface")


def _config(settings: Settings, name: str) -> Command:
    return ("--config", str(settings.configs / name.format(task=settings.task)))


def _data(settings: Settings) -> Command:
    return () if settings.data is None else ("--data.path", settings.data)


def _reward(settings: Settings) -> Command:
    return () if settings.reward is None else ("--model.reward.pretrained", settings.reward)


def _extra(method: Method, kind: Kind, settings: Settings) -> Command:
    tags = ("all", kind, method.name, f"{method.name}:{kind}")
    return tuple(word for tag in tags for own, words in settings.extra if own == tag for word in words)


def _require_configs(settings: Settings, methods: Sequence[Method]) -> None:
    tasks = sorted(path.stem for path in settings.configs.glob("*.yaml"))
    if settings.task not in tasks:
        raise UserError(f"--task: got {settings.task!r}, expected one of {', '.join(tasks)}")
    if settings.seeds < 1:
        raise UserError(f"--seeds: got {settings.seeds}, expected 1 or more")
    for method in methods:
        for name in filter(None, (method.fit, method.test)):
            path = settings.configs / name.format(task=settings.task)
            if not path.is_file():
                raise UserError(f"{method.name}: {path} is not there; leave {method.name} out of --methods")
