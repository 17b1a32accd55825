"""What is said of a file can be printed."""

import keras
import pytest

from keras_flix.files.file_errors import MAX_MESSAGE, shown

if keras.config.backend() != "torch":
    reason = "texts do not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)


def test_what_a_file_says_is_shown_in_a_length_and_characters_that_can_be_printed():
    assert shown("a\ud800é") == "a\\ud800é"
    assert shown(3) == "3"
    assert shown("x" * MAX_MESSAGE) == "x" * MAX_MESSAGE
    assert shown("x" * (MAX_MESSAGE + 1)) == "x" * MAX_MESSAGE + "..."
