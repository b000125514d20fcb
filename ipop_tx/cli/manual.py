"""What comes out of the tree of commands itself: the man page, and completion for shells."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from ipop_tx import __version__

EXIT_STATUS = (
    ("0", "It was done."),
    ("1", "It could not be done, or what was asked about is at fault; one line on stderr says why, and mostly what mends it."),
    ("2", "It was asked for wrongly: options, or node.toml."),
    ("130", "Interrupted."),
)
_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    r"""Print what makes SHELL complete the commands of ipop.

    \b
    ipop completion bash > /etc/bash_completion.d/ipop
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "ipop", "_IPOP_COMPLETE").source())


@click.command()
@click.pass_context
def man(context: click.Context) -> None:
    r"""Print the man page, ipop(1).

    \b
    ipop man | man -l -
    """
    click.echo("\n".join(page(context.find_root().command)))


def page(root: click.Command) -> Iterator[str]:
    """The lines of a page with the macros of man(7)."""
    yield f'.TH IPOP 1 "" "ipop_tx {__version__}" "User Commands"'
    yield from (".SH NAME", f"ipop \\- {_quoted(_summary(root))}", ".SH SYNOPSIS", ".B ipop", "COMMAND [OPTION]... [ARGUMENT]...")
    yield from (".SH DESCRIPTION", _quoted(_summary(root)))
    yield "Every command that asks the daemon takes"
    yield from (
        ".B \\-\\-socket, \\-\\-config",
        "or",
        ".B \\-\\-network,",
        "which say which one; where it prints anything,",
        ".B \\-\\-json",
    )
    yield "makes that JSON."
    yield ".SH COMMANDS"
    for words, command in tree(root):
        yield from _section(words, command)
    yield ".SH EXIT STATUS"
    for status, meaning in EXIT_STATUS:
        yield from (".TP", f".B {status}", _quoted(meaning))
    yield from (
        ".SH ENVIRONMENT",
        ".TP",
        ".B IPOP_SOCKET",
        "The daemon's control socket.",
        ".TP",
        ".B NO_COLOR",
        "No colours, also on a terminal.",
    )
    yield from (
        ".SH FILES",
        ".TP",
        ".I /etc/ipop/node.toml",
        "The configuration.",
        ".TP",
        ".I /run/ipop/control.sock",
        "The control socket.",
    )


def tree(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands that can be called, each with its words."""
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            if not command.commands[name].hidden:
                yield from tree(command.commands[name], (*words, name))
    else:
        yield words, command


def _section(words: tuple[str, ...], command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(("ipop", *words)))
    yield f'.SS "{_quoted(" ".join(["ipop", *words, *command.collect_usage_pieces(context)]))}"'
    for number, paragraph in enumerate(_paragraphs(command.help or "")):
        if number:
            yield ".PP"
        yield from ([".nf", *map(_quoted, paragraph[1:]), ".fi"] if paragraph[0] == "\b" else [_quoted(" ".join(paragraph))])
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and parameter.name != "help":
            yield from (".TP", f".B {_quoted(record[0])}", _quoted(" ".join(record[1].split())))


def _paragraphs(text: str) -> Iterator[list[str]]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield [line.strip() for line in paragraph.splitlines()]


def _summary(command: click.Command) -> str:
    return (command.help or "").strip().partition("\n")[0]


def _quoted(text: str) -> str:
    """Text that roff prints as it stands."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text
