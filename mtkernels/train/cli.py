"""The `mtkernels` command: train, report, demo. What it needs beyond torch is imported only on use."""

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended
_EXTRA = "this command needs {}: pip install mtkernels[train]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default sys.argv[1:]) and return its exit code."""
    from .config import SettingError

    try:
        from .commands import parse, perform

        return perform(parse(sys.argv[1:] if argv is None else list(argv)))
    except SystemExit as stop:  # tyro has printed its help or its error
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "mtkernels":
            raise
        return _fail(_EXTRA.format(error.name.split(".")[0]), 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SettingError as error:
        return _fail(error, 2)
    except (OSError, FloatingPointError) as error:
        return _fail(error, 1)


def _fail(error: object, code: int) -> int:
    # Of several ranks that report the same, one speaks.
    if not getattr(error, "elsewhere", os.environ.get("RANK", "0") != "0"):
        print(f"mtkernels: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
