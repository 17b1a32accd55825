"""Names of files from any text."""

from keras_flix._utils.file_names import file_names


def test_names_are_safe_and_unique():
    texts = ["../up", "a/b", "a_b", "A_B", "日本", "中文", "", ".", "x" * 300, "v1.5"]
    assert file_names(texts, "other", ["index.json"]) == [
        "_up",
        "a_b",
        "a_b-2",
        "A_B-3",
        "__",
        "__-2",
        "other",
        "other-2",
        "x" * 100,
        "v1.5",
    ]
    assert file_names(["v1.5", "Index"], "other", ["index"], dots=False) == [
        "v1_5",
        "Index-2",
    ]
