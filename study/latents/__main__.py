"""`python -m study.latents encode ...`: what `python -m study.data encode ...` does, and starts its workers with."""

import sys

from study.latents.command import main

if __name__ == "__main__":
    sys.exit(main([word for place, word in enumerate(sys.argv[1:]) if place or word != "encode"]))
