"""A script that completes commands, verbs, options, sweep files, sweeps and runs in a shell.

    eval "$(python -m study.completion bash)"        # in ~/.bashrc; in ~/.zshrc: zsh in place of bash

It completes `diffusion-study sweep ...`, `python -m study sweep ...` and `python -m study.sweep ...`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from study.__main__ import COMMANDS
from study.command_line import command_parser, finish, options_of, verbs_of
from study.options import parser_of

SCRIPT = """\
_diffusion_study() {
    local word="${COMP_WORDS[COMP_CWORD]}" said options="" names=""
    said=("${COMP_WORDS[@]:0:$COMP_CWORD}")
    COMPREPLY=()
    if [[ "${said[0]##*/}" == python* ]]; then
        [[ "${said[1]-}" == -m ]] || return 0
        if (( COMP_CWORD == 2 )); then
            COMPREPLY=($(compgen -W "study @MODULES@" -- "$word"))
            return 0
        fi
        case "${said[2]}" in
            study) said=("${said[@]:2}") ;;
            study.*) said=(study "${said[2]#study.}" "${said[@]:3}") ;;
            *) return 0 ;;
        esac
    fi
    if (( ${#said[@]} == 1 )); then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        return 0
    fi
    case "${said[1]} ${said[2]-}" in
@OPTIONS@
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
        return 0
    fi
    case "${said[1]}" in
        sweep | cost) COMPREPLY=($(compgen -f -X '!*.y*ml' -- "$word") $(compgen -d -- "$word")) ;;
        status | answer | cancel | report)
            names="$(printf '%s\\n' results/*/plan.json | sed -n 's|^results/\\([^*]*\\)/plan.json$|\\1|p')" ;;
        completion) names="bash zsh" ;;
        @VERBED@) (( ${#said[@]} > 2 )) || names="$options" ;;
    esac
    case "${said[1]}" in
        status | logs) names="$names $(ls results/runs 2> /dev/null)" ;;
    esac
    if [[ -n "$names" ]]; then
        COMPREPLY=($(compgen -W "$names" -- "$word"))
    fi
}
complete -o bashdefault -o default -F _diffusion_study diffusion-study
"""

BASH = """\
for _python in python python3; do  # unless somebody completes these already
    complete -p "$_python" > /dev/null 2>&1 || complete -o bashdefault -o default -F _diffusion_study "$_python"
done
unset _python
"""

ZSH_BEFORE = "autoload -U +X compinit && compinit -i\nautoload -U +X bashcompinit && bashcompinit\n"
ZSH_AFTER = """\
_diffusion_study_or_python() {
    if [[ "${words[2]}" == -m && "${words[3]}" == study* ]]; then
        _bash_complete -o bashdefault -o default -F _diffusion_study
    else
        _python
    fi
}
compdef _diffusion_study_or_python python python3
"""


def script(shell: str) -> str:
    verbed = [command for command in COMMANDS if verbs_of(parser_of(command))]
    text = SCRIPT.replace("@OPTIONS@", "\n".join(f"        {line}" for line in _cases()))
    text = text.replace("@MODULES@", " ".join(f"study.{command}" for command in COMMANDS))
    text = text.replace("@COMMANDS@", " ".join(COMMANDS)).replace("@VERBED@", " | ".join(verbed))
    return ZSH_BEFORE + text + ZSH_AFTER if shell == "zsh" else text + BASH


def _cases() -> Iterator[str]:
    """What may follow a command, and a command's verb; the first case that fits is taken."""
    for command in COMMANDS:
        parser = parser_of(command)
        verbs = verbs_of(parser)
        for verb, below in verbs.items():
            yield f'"{command} {verb}") options="{" ".join(options_of(below))}" ;;'
        yield f'"{command} "*) options="{" ".join([*options_of(parser), *verbs])}" ;;'


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("completion", __doc__)
    parser.add_argument("shell", choices=("bash", "zsh"))
    return parser


def main(given: Sequence[str]) -> int:
    shell = arguments().parse_args(given).shell

    def show() -> int:
        print(script(shell), end="")
        return 0

    return finish(show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
