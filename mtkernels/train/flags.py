"""The command line in other words: the flags of Mean Teacher's published PyTorch version, and yes and no."""

from collections.abc import Sequence
from typing import get_type_hints

from .config import Config, SettingError

ALIASES = {
    "-a": "--arch",
    "-b": "--batch-size",
    "-j": "--workers",
    "--learning-rate": "--lr",
    "--wd": "--weight-decay",
    "--lr-rampdown-epochs": "--lr-rampdown",
    "--evaluation-epochs": "--eval-interval",
    "--checkpoint-epochs": "--checkpoint-interval",
    "--print-freq": "--print-interval",
    "-p": "--print-interval",
}
INSTEAD = {
    "--start-epoch": "a checkpoint knows its step, see --resume",
    "--evaluate": "`mtkernels evaluate RUN` does that",
    "-e": "`mtkernels evaluate RUN` does that",
}
_WORDS = dict.fromkeys(("yes", "true", "t", "y", "1"), "True")
_WORDS |= dict.fromkeys(("no", "false", "f", "n", "0"), "False")
_SWITCHES = {name for name, kind in get_type_hints(Config).items() if kind is bool}


def translate(argv: Sequence[str]) -> list[str]:
    """`argv` of `mtkernels train` with each flag under its own name, and True or False after each switch.

    A length in epochs takes the place of a preset's in steps, and the other way round.
    """
    words: list[str] = []
    for word in argv:
        name, equals, value = _parted(word)
        if name in INSTEAD:
            raise SettingError(f"{name} is not supported: {INSTEAD[name]}")
        words.append(ALIASES.get(name, name))
        words += [value] if equals else []
    translated: list[str] = []
    for at, word in enumerate(words):
        if at and _switch(words[at - 1]) in _SWITCHES and word.lower() in _WORDS:
            word = _WORDS[word.lower()]
        elif word.startswith("--no-") and _field(word[5:]) in _SWITCHES:
            translated.append("--" + word[5:])
            word = "False"
        translated.append(word)
        following = words[at + 1].lower() if at + 1 < len(words) else ""
        if _switch(word) in _SWITCHES and following not in _WORDS:
            translated.append("True")
    for given, other in (("--epochs", "--steps"), ("--steps", "--epochs")):
        if given in translated and other not in translated:
            translated += [other, "None"]
    return translated


def _parted(word: str) -> tuple[str, str, str]:
    """A flag, and its value where that is attached: --lr=0.1, --weight_decay, -b=64, -b64."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name.replace("_", "-"), equals, value
    if word[:2] in ALIASES.keys() | INSTEAD.keys() and word[2:]:
        return word[:2], "=", word[2:].removeprefix("=")
    return word, "", ""


def _switch(word: str) -> str:
    return _field(word[2:]) if word.startswith("--") else ""


def _field(name: str) -> str:
    return name.replace("-", "_")
