"""`python -m keras_flix`: the command `keras-flix`."""

import sys

from keras_flix.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
