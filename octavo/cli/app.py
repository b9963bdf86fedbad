"""Dispatch, exit codes and errors, the same for every verb. A verb's module is imported only when it is called."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import click
import typer
from typer.core import TyperGroup

from octavo import __version__
from octavo.errors import OctavoError

VERBS = {
    "fit": "The main job: fold, export, read back, run, measure, and say which build to ship.",
    "compress": "Stage one: write a compressed model (exact integer codes and scales).",
    "export": "Stage two: write a runtime's file, read it back and prove that it carries the same codes.",
    "inspect": "Say what a file or directory is: sizes, true bits per weight, schemes, lineage.",
    "run": "Run an artifact: text from a prompt, or outputs from inputs.",
    "verify": "Are the weights exact? How do outputs and accuracy compare with the original?",
    "doctor": "Which runtimes work here, and what to do about those that do not.",
}


class Lazy(TyperGroup):
    """A group that imports the module of a verb when that verb is called, so that `octavo --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        application = typer.Typer(add_completion=False, rich_markup_mode=None)
        module = import_module(f"octavo.cli.{cmd_name}")
        application.command(cmd_name, help=VERBS[cmd_name])(getattr(module, cmd_name))
        return typer.main.get_command(application)


def _show_version(value: bool) -> None:
    if value:
        print(f"octavo {__version__}")
        raise typer.Exit


app = typer.Typer(cls=Lazy, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback(help="Fold a trained model until it fits a device, and prove that it still works there.")
def root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options that come before a verb."""


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code; an error is one message on standard error."""
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="octavo", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OctavoError as error:
        if debug:
            raise
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, click.Abort):
        print("octavo: interrupted; nothing half-written was kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        if debug:
            raise
        print("octavo: out of memory. Close other programs, or use a machine with more.", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"octavo: unexpected {type(error).__name__}: {error}. Run again with --debug.", file=sys.stderr)
        return 1
