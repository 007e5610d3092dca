"""``python -m tvm_tinytrain``: the command ``tinytrain``."""

import sys

from tvm_tinytrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
