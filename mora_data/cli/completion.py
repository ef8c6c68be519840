"""Shell completion of commands, subcommands and flags, made from the parser:

source <(mora-data completion bash)        likewise for zsh; put it into ~/.bashrc
"""

from __future__ import annotations

import argparse

BASH = """\
# mora-data completion bash
_mora_data() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} words=
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
  esac
  [[ $COMP_CWORD -eq 1 ]] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _mora_data mora-data
"""
ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for `bash` or `zsh`."""
    commands = _below(parser)
    cases = []
    for name, command in commands.items():
        inner = _below(command)
        cases += [f'    "{name} {n}") words="{_words(c)}" ;;' for n, c in inner.items()]
        cases.append(f'    "{name} "*) words="{" ".join([*inner, _words(command)])}" ;;')
    bash = BASH.format(cases="\n".join(cases), commands=" ".join(commands))
    return (ZSH if shell == "zsh" else "") + bash


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _words(parser: argparse.ArgumentParser) -> str:
    """Its flags, and the values of a positional that has a few."""
    flags = [f for a in parser._actions for f in a.option_strings if f.startswith("--")]
    values = [
        str(v)
        for a in parser._actions
        if not a.option_strings and a.choices and not isinstance(a, argparse._SubParsersAction)
        for v in a.choices
    ]
    return " ".join([*values, *flags])
