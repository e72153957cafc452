"""`python -m study.latents encode ...` (or `python -m study.data encode ...`), `python -m study.latents check PATH`."""

import sys

from study.latents.command import check, main

VERBS = {"encode": main, "check": check}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        asked = sys.argv[1:2] in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.exit(VERBS[sys.argv[1]](sys.argv[2:]))
