"""The application, exit codes and errors, the same for every verb."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from importlib import import_module

import typer

from octavo import __version__
from octavo.cli.devices import devices
from octavo.errors import OctavoError

VERBS = {
    "fit": "The main job: fold, export, read back, run, measure, and say which build to ship.",
    "plan": "Does it fit, how fast, how many joules, for how long? Nothing is converted.",
    "compress": "Stage one: write a compressed model (exact integer codes and scales).",
    "export": "Stage two: write a runtime's file, read it back and prove that it carries the same codes.",
    "inspect": "Say what a file or directory is: sizes, true bits per weight, schemes, lineage.",
    "run": "Run an artifact: text from a prompt, or outputs from inputs.",
    "bench": "How fast is an artifact here, how much memory does it take, and does it stay so?",
    "verify": "Are the weights exact? How do outputs and accuracy compare with the original?",
    "decide": "On the device, in the cloud, or split: latency, money, battery, and what would flip the answer.",
    "doctor": "Which runtimes work here, and what to do about those that do not.",
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report SIGINT and SIGPIPE


def _show_version(value: bool) -> None:
    if value:
        print(f"octavo {__version__}")
        raise typer.Exit


app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for _verb, _help in VERBS.items():
    app.command(_verb, help=_help)(getattr(import_module(f"octavo.cli.{_verb}"), _verb))
app.add_typer(devices, name="devices")


@app.callback(help="Fold a trained model until it fits a device, and prove that it still works there.")
def root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options that come before a verb."""


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code; an error is one message on standard error."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _quieten()
    try:
        result = app(arguments, prog_name="octavo", standalone_mode=False)
        if result != INTERRUPTED:  # which the command-line library makes of Ctrl-C
            return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, BrokenPipeError):
            raise  # else the command-line library's word for a reader that left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        pass
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error)
    print("octavo: interrupted; nothing half-written was kept.", file=sys.stderr)
    return INTERRUPTED


def _quieten() -> None:
    """Libraries that warn on standard error, as they are imported, about kernels that nobody asked them for."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")


def _explain(error: Exception) -> int:
    """Print one message and return the exit code: 2 for wrong usage, 1 for everything else."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command-line library
        error.show()
        return int(error.exit_code)
    if isinstance(error, OctavoError):
        print(f"octavo: {error}", file=sys.stderr)
    elif isinstance(error, MemoryError):
        print("octavo: out of memory. Close other programs, or use a machine with more.", file=sys.stderr)
    else:
        print(f"octavo: unexpected {type(error).__name__}: {error}. Run again with --debug.", file=sys.stderr)
    return 1
