"""The harness: from a study question to rows of results."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m study...`, on the way to its command
    from study.command_line import end_quietly_on_interrupt

    end_quietly_on_interrupt()
