"""`rlhf completion SHELL`: a script that makes the tab key complete subcommands, groups, options and keys.

Hydra completes the words of a command without subcommands. The script therefore hands it the line without `train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

BASH = """\
_rlhf_complete() {
    local word="${COMP_WORDS[COMP_CWORD]}" choices
    if (( COMP_CWORD == 1 )); then
        choices="train sweep score doctor compare export rerun cache constitution completion --help --version"
    elif [ "${COMP_WORDS[1]}" = "train" ]; then
        choices=$(COMP_LINE="rlhf ${COMP_LINE#*train}" rlhf train -sc query=bash 2> /dev/null)
    elif [ "${COMP_WORDS[1]}" = "completion" ]; then
        choices="bash zsh fish"
    fi
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _rlhf_complete rlhf
"""

ZSH = f"autoload -Uz bashcompinit && bashcompinit\n{BASH}"

FISH = """\
function _rlhf_complete
    set -l line (commandline -cp)
    set -l words (commandline -opc)
    if test (count $words) -le 1
        printf '%s\\n' train sweep score doctor compare export rerun cache constitution completion --help --version
    else if test "$words[2]" = train
        set -lx COMP_LINE "rlhf "(string replace -r '^.*?train' '' -- $line)
        rlhf train -sc query=fish 2> /dev/null
    else if test "$words[2]" = completion
        printf '%s\\n' bash zsh fish
    end
end
complete -c rlhf -f -a '(_rlhf_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

USAGE = """\
usage: rlhf completion bash|zsh|fish

Prints a script for your shell. Put the line for yours into its start-up file, or try it at once:
  bash  eval "$(rlhf completion bash)"
  zsh   eval "$(rlhf completion zsh)"
  fish  rlhf completion fish | source
"""


def main(argv: Sequence[str]) -> int:
    """Prints the script of the shell that was asked for."""
    if list(argv) in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return 0
    if len(argv) != 1 or argv[0] not in SCRIPTS:
        sys.stderr.write(USAGE)
        return 2
    sys.stdout.write(SCRIPTS[argv[0]])
    return 0
