"""The parser of every command, and each of its flags."""

import argparse
import sys
from collections.abc import Iterator

import pytest

import demo
import download_checkpoints
import eval_disentanglement
import eval_geometry
import eval_ntk_localization
import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import make_figures
import make_report
import make_tables
import merge_checkpoints
import reproduce
from src.args import Parser
from src.datasets import __main__ as datasets
from src.published import convert
from src.vit_mini import pretrain

SCRIPTS = [
    *(finetune, eval_single_task, eval_task_addition, eval_task_negation, eval_disentanglement, eval_geometry),
    *(eval_ntk_localization, download_checkpoints, merge_checkpoints, reproduce, demo, make_tables, make_figures),
    *(make_report, convert, pretrain, datasets),
]


class Parsed(Exception):
    """Ends a script at its parser."""


def parser_of(script) -> Parser:
    """The parser that a script builds, before it parses anything."""

    def stop(self, *args):
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Parsed) as stopped:
        patched.setattr(Parser, "parse_args", stop)
        patched.setattr(sys, "argv", ["script"])
        script.main([])
    return stopped.value.args[0]


def actions(parser: Parser) -> Iterator[tuple[Parser, argparse.Action]]:
    """Every flag, those of subcommands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        else:
            yield parser, action


def every_flag() -> Iterator[tuple[str, Parser, argparse.Action]]:
    """(script and flag, parser, flag) of all commands."""
    for script in SCRIPTS:
        for parser, action in actions(parser_of(script)):
            yield f"{script.__name__.rpartition('.')[2]}-{action.dest}", parser, action
