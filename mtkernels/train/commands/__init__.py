"""The commands behind cli.py: their arguments as dataclasses, and what they do."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro

from ..flags import translate
from .catalog import Presets, presets
from .data import Data, data
from .report import Demo, Report, demo, report
from .train import Train, defaults, train
from .use import Evaluate, Export, Predict, evaluate, export, predict_files

Command = Train | Evaluate | Predict | Export | Report | Demo | Presets | Data
_PERFORM: dict[type, Callable[..., int]] = {
    Train: train,
    Evaluate: evaluate,
    Predict: predict_files,
    Export: export,
    Report: report,
    Demo: demo,
    Presets: presets,
    Data: data,
}


def parse(argv: Sequence[str]) -> Command:
    """The command line as one of them; wrong ones exit with 2 and tyro's suggestions."""
    argv = list(argv)
    if argv[:1] == ["train"]:
        argv = ["train", *translate(argv[1:])]
    start = defaults(argv[1:]) if argv[:1] == ["train"] else defaults([])
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=start)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Presets, tyro.conf.subcommand("presets")]
        | Annotated[Data, tyro.conf.subcommand("data")]
    )
    return tyro.cli(
        commands,
        prog="mtkernels",
        args=argv,
        description="Train against a teacher; see what it gave.",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def check_libraries() -> None:
    """Missing libraries must show before a training, not after it; importing them here takes a second."""
    for name in ("matplotlib", "safetensors", "sklearn"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def perform(command: Command) -> int:
    """Do it, and return the exit code."""
    check_libraries()
    return _PERFORM[type(command)](command)
