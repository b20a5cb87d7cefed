"""`python -m rlhf_lightning` is `rlhf`."""

import sys

from rlhf_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
