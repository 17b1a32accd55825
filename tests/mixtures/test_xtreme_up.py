"""XTREME-UP: made-up files in the published layout, and every refusal."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.places import GUIDES

from keras_flix import xtreme_up
from keras_flix.text_metrics import chrf, exact_match, span_f1, token_f1
from keras_flix.xtreme_up import (
    LANGUAGES,
    METRICS,
    TASKS,
    UNDER_REPRESENTED,
    default_prompt,
    load_xtreme_up,
    task_scores,
)

PARSE = {"input": "niamshe saa moja", "target": "[IN:CREATE_ALARM [SL:TIME moja ] ]"}
QA = {
    "question": "সূর্য কী?",
    "title": "সূর্য",
    "context": "সূর্য একটি তারা।",
    "target": "একটি তারা",
}
TRANSLATION = {"input": "Good night.", "target": "Lala salama."}
YORUBA = "Ẹ kú àárọ̀ ní Èkó, Adé."


def span(text, entity, label):
    """The span of an entity, counted in bytes of UTF-8."""
    start = len(text[: text.index(entity)].encode())
    limit = start + len(entity.encode())
    return {"start_byte": start, "limit_byte": limit, "label": label}


NER = {
    "text": YORUBA,
    "spans": [span(YORUBA, "Èkó", "LOC"), span(YORUBA, "Adé", "PER")],
}
ALL = {
    "semantic_parsing": ("sw", PARSE),
    "qa_in_lang": ("bn", QA),
    "qa_cross_lang": ("bn", QA),
    "translation": ("en2sw", TRANSLATION),
    "ner": ("yo", NER),
}


def write(root, task, language, *examples, split="train"):
    """Writes one file in the layout; bytes are written as they are."""
    path = root / task / split / f"{language}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(examples) == 1 and isinstance(examples[0], bytes):
        path.write_bytes(examples[0])
    else:
        lines = [json.dumps(e, ensure_ascii=False) for e in examples]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def everything(tmp_path):
    for task, (language, example) in ALL.items():
        write(tmp_path, task, language, example)
    return tmp_path


def features(mixture):
    return [tuple(dataset.features.values()) for dataset in mixture.datasets]


def columns(mixture, name):
    return [list(dataset.columns[name]) for dataset in mixture.datasets]


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def bare(task, language, text):
    return text


# What is read.


def test_all_tasks(everything):
    mixture = load_xtreme_up(everything)
    assert [dict(dataset.features) for dataset in mixture.datasets] == [
        {"task": "semantic_parsing", "language": "sw"},
        {"task": "qa_in_lang", "language": "bn"},
        {"task": "qa_cross_lang", "language": "bn"},
        {"task": "translation", "language": "sw"},
        {"task": "ner", "language": "yo"},
    ]
    question = "question: সূর্য কী? title: সূর্য context: সূর্য একটি তারা।"
    assert columns(mixture, "prompts") == [
        ["task: semantic_parsing\nlanguage: sw\nniamshe saa moja\nanswer:\n"],
        [f"task: qa_in_lang\nlanguage: bn\n{question}\nanswer:\n"],
        [f"task: qa_cross_lang\nlanguage: bn\n{question}\nanswer:\n"],
        ["task: translation\nlanguage: sw\nGood night.\nanswer:\n"],
        [f"task: ner\nlanguage: yo\n{YORUBA}\nanswer:\n"],
    ]
    assert columns(mixture, "responses") == [
        ["[IN:CREATE_ALARM [SL:TIME moja ] ]"],
        ["একটি তারা"],
        ["একটি তারা"],
        ["Lala salama."],
        ["LOC: Èkó $$ PER: Adé"],
    ]


def test_text_alone_is_the_baselines_input(everything):
    mixture = load_xtreme_up(everything, prompt_format=bare)
    assert columns(mixture, "prompts") == [
        ["niamshe saa moja"],
        ["question: সূর্য কী? title: সূর্য context: সূর্য একটি তারা।"],
        ["question: সূর্য কী? title: সূর্য context: সূর্য একটি তারা।"],
        ["Good night."],
        [YORUBA],
    ]


def test_the_default_prompt_states_task_and_language(everything):
    for dataset in load_xtreme_up(everything).datasets:
        task, language = dataset.features["task"], dataset.features["language"]
        for prompt in dataset.columns["prompts"]:
            assert task in prompt
            assert re.search(rf"\b{language}\b", prompt)
    assert default_prompt("a", "b", "c") != default_prompt("a", "d", "c")


def test_prompt_format_gets_task_language_and_text(tmp_path):
    write(tmp_path, "translation", "en2pt", TRANSLATION, TRANSLATION)
    seen = []

    def record(*arguments):
        seen.append(arguments)
        return f"prompt {len(seen)}"

    mixture = load_xtreme_up(tmp_path, prompt_format=record)
    assert seen == [("translation", "pt", "Good night.")] * 2
    assert columns(mixture, "prompts") == [["prompt 1", "prompt 2"]]


def test_spans_keep_their_order_and_may_touch(tmp_path):
    text = "አዲስአበባ x"
    first, second = span(text, "አዲስ", "A"), span(text, "አበባ", "B")
    assert (first["start_byte"], first["limit_byte"]) == (0, 9)
    write(
        tmp_path,
        "ner",
        "am",
        {"text": text, "spans": [second, first]},
        {"text": text, "spans": []},
        {"text": text, "spans": [span(text, text, "ALL")]},
    )
    mixture = load_xtreme_up(tmp_path)
    assert columns(mixture, "responses") == [["B: አበባ $$ A: አዲስ", "", f"ALL: {text}"]]


def test_tabs_of_entities_are_spaces(tmp_path):
    text = "a\tb c"
    write(tmp_path, "ner", "sw", {"text": text, "spans": [span(text, "a\tb", "X")]})
    mixture = load_xtreme_up(tmp_path, prompt_format=bare)
    assert columns(mixture, "prompts") == [["a b c"]]
    assert columns(mixture, "responses") == [["X: a b"]]


def test_entities_score_against_themselves(everything):
    (responses,) = columns(load_xtreme_up(everything, tasks=["ner"]), "responses")
    assert span_f1(responses, responses) == 100


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"input": "a", "target": "b"}\n',
        b'{"input": "a", "target": "b"}\r\n',
        b'\n \t\r\n{"input": "a", "target": "b"}',
        b'{"target": "b", "more": [1], "input": "a"}\n\n\n',
    ],
    ids=["BOM", "CRLF", "blank lines", "other fields"],
)
def test_harmless_variants_of_files(tmp_path, data):
    write(tmp_path, "semantic_parsing", "sw", data)
    mixture = load_xtreme_up(tmp_path, prompt_format=bare)
    assert columns(mixture, "prompts") == [["a"]]
    assert columns(mixture, "responses") == [["b"]]


def test_line_separators_within_strings_end_no_line(tmp_path):
    text = "a\u2028b\x85c"
    write(tmp_path, "semantic_parsing", "sw", {"input": text, "target": text})
    assert columns(load_xtreme_up(tmp_path), "responses") == [[text]]


def test_splits_are_apart(tmp_path):
    for split in ("train", "validation", "test"):
        example = {"input": split, "target": split.upper()}
        write(tmp_path, "semantic_parsing", "sw", example, split=split)
    for split in ("train", "validation", "test"):
        mixture = load_xtreme_up(tmp_path, split)
        assert columns(mixture, "responses") == [[split.upper()]]


def test_what_is_in_the_directory_is_taken(everything):
    (everything / "asr" / "train").mkdir(parents=True)
    (everything / "semantic_parsing" / "train" / "._sw.jsonl").write_bytes(b"\0")
    (everything / "semantic_parsing" / "train" / "README.md").write_text("text")
    write(everything, "semantic_parsing", "xx_yy", PARSE)
    assert features(load_xtreme_up(everything, tasks=["ner", "semantic_parsing"])) == [
        ("ner", "yo"),
        ("semantic_parsing", "sw"),
        ("semantic_parsing", "xx_yy"),
    ]


def test_languages_are_taken_from_the_tasks_that_have_them(everything):
    write(everything, "ner", "sw", NER)
    assert features(load_xtreme_up(everything, languages=["yo", "sw"])) == [
        ("semantic_parsing", "sw"),
        ("translation", "sw"),
        ("ner", "yo"),
        ("ner", "sw"),
    ]


def test_temperature_is_the_mixtures(everything):
    assert load_xtreme_up(everything).temperature == 1.0
    assert load_xtreme_up(everything, temperature=2.0).temperature == 2.0


@pytest.fixture
def switched(tmp_path):
    for language in ("hi", "hi_cs", "pt_br"):
        write(tmp_path, "semantic_parsing", language, PARSE)
    return tmp_path


def test_code_switched_sets_are_left_out(switched):
    mixture = load_xtreme_up(switched)
    assert features(mixture) == [
        ("semantic_parsing", "hi"),
        ("semantic_parsing", "pt_br"),
    ]
    assert not mixture.schema()["language"].multiple


def test_code_switched_sets_have_two_languages(switched):
    mixture = load_xtreme_up(switched, code_switched=True)
    assert features(mixture) == [
        ("semantic_parsing", ["hi"]),
        ("semantic_parsing", ["hi", "en"]),
        ("semantic_parsing", ["pt_br"]),
    ]
    assert mixture.schema()["language"].multiple
    assert not mixture.schema()["task"].multiple
    assert mixture.schema()["language"].values == ("hi", "en", "pt_br")
    assert "language: hi_cs\n" in columns(mixture, "prompts")[1][0]


def test_code_switching_makes_the_axis_multiple_in_any_case(switched):
    mixture = load_xtreme_up(switched, languages=["hi"], code_switched=True)
    assert features(mixture) == [("semantic_parsing", ["hi"])]
    assert mixture.schema()["language"].multiple


# What is refused.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"split": "dev"},
            "A split must be one of 'train', 'validation', 'test'. Received: "
            "split='dev'.",
        ),
        (
            {"tasks": ["qa_in_language"]},
            "A task must be one of 'semantic_parsing', 'qa_in_lang', 'qa_cross_lang', "
            "'translation', 'ner'. Received: task='qa_in_language'. The nearest is "
            "'qa_in_lang'.",
        ),
        (
            {"tasks": ["../secret"]},
            "A task must be one of",
        ),
        (
            {"tasks": "ner"},
            "`tasks` must be a list of different names, or None for all. Received: "
            "tasks='ner'.",
        ),
        (
            {"tasks": []},
            "`tasks` must be a list of different names, or None for all. Received: "
            "tasks=[].",
        ),
        (
            {"languages": ["sw", "sw"]},
            "`languages` must be a list of different names, or None for all. Received: "
            "languages=['sw', 'sw'].",
        ),
        (
            {"languages": ["swa"]},
            "A language must be one of 'bn', 'sw', 'yo', the files of this split. "
            "Received: language='swa'. The nearest is 'sw'.",
        ),
        (
            {"languages": ["../../../semantic_parsing/train/sw"]},
            "A language must be one of 'bn', 'sw', 'yo', the files of this split.",
        ),
        ({"languages": [1]}, "this split. Received: language=1."),
    ],
)
def test_refuses_unknown_names(everything, options, text):
    assert text in refusal(lambda: load_xtreme_up(everything, **options))


def test_refuses_code_switched_languages_without_asking(switched):
    assert refusal(lambda: load_xtreme_up(switched, languages=["hi", "hi_cs"])) == (
        "Code-switched sets must be asked for. Received: languages=['hi', 'hi_cs'] "
        "with code_switched=False, where 'hi_cs' mixes ['hi', 'en']. Pass "
        "code_switched=True."
    )


def test_refuses_missing_folders(tmp_path):
    text = (
        "`directory` must hold '<task>/<split>' folders, as the archive of XTREME-UP "
        "does. Received: directory={!r}, without {!r}. Unpack the archive and pass the "
        "folder that holds 'semantic_parsing'; 'ner' is a download of its own."
    )
    absent = tmp_path / "absent"
    path = os.path.join("semantic_parsing", "train")
    for root in (tmp_path, absent):
        assert refusal(lambda root=root: load_xtreme_up(root)) == (
            text.format(str(root), path)
        )
    write(tmp_path, "semantic_parsing", "sw", PARSE)
    assert load_xtreme_up(tmp_path)
    assert refusal(
        lambda: load_xtreme_up(tmp_path, tasks=["semantic_parsing", "ner"])
    ) == text.format(str(tmp_path), os.path.join("ner", "train"))
    assert refusal(lambda: load_xtreme_up(tmp_path, "test")) == text.format(
        str(tmp_path), os.path.join("semantic_parsing", "test")
    )


def test_refuses_a_split_without_files(tmp_path):
    folder = tmp_path / "semantic_parsing" / "train"
    folder.mkdir(parents=True)
    text = (
        "The 'train' split must have at least one '<language>.jsonl' file. Received: "
        f"{folder}, without one (code_switched=False). Unpack the archive there."
    )
    assert refusal(lambda: load_xtreme_up(tmp_path)) == text
    write(tmp_path, "semantic_parsing", "hi_cs", PARSE)
    assert refusal(lambda: load_xtreme_up(tmp_path)) == text


@pytest.mark.parametrize(
    ("task", "name", "form"),
    [
        ("translation", "sw", "en2<language>"),
        ("translation", "sw2en", "en2<language>"),
        ("translation", "en2", "en2<language>"),
        ("semantic_parsing", "sw (1)", "<language>"),
        ("ner", "en2sw", "<language>"),
    ],
)
def test_refuses_files_of_other_names(tmp_path, task, name, form):
    path = write(tmp_path, task, name, TRANSLATION)
    assert refusal(lambda: load_xtreme_up(tmp_path)) == (
        f"The files of task {task!r} must be called '{form}.jsonl'. Received: "
        f"{str(path)!r}. Rename it, or move it elsewhere."
    )


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_refuses_empty_files(tmp_path, data):
    path = write(tmp_path, "semantic_parsing", "sw", data)
    assert refusal(lambda: load_xtreme_up(tmp_path)) == (
        f"A file must hold at least one example. Received: {path}, without any. "
        "Download or unpack it again, or leave it out."
    )


GOOD = b'{"input": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"input": "a", "target": ', "one JSON object in UTF-8. Received: {} Expec"),
        (b'{"input": "\xff", "target": "b"}', "{} 'utf-8' codec can't decode byte"),
        (b"[" * 100_000, "one JSON object in UTF-8. Received: {} maximum recursion"),
        (b'["a", "b"]', "A line must hold one JSON object. Received: {} ['a', 'b']."),
        (b"null", "A line must hold one JSON object. Received: {} None. Correct or"),
        (
            b'{"input": "a"}',
            "Field 'target' must be a string. Received: {} no such field, among the "
            "fields ['input']. Correct or remove the line.",
        ),
        (
            b'{"input": "a", "target": ["b"]}',
            "Field 'target' must be a string. Received: {} ['b'], among the fields "
            "['input', 'target']. Correct or remove the line.",
        ),
        (
            b'{"input": null, "target": "b"}',
            "Field 'input' must be a string. Received: {} None, among the fields",
        ),
        (
            b'{"input": "a\\ud800", "target": "b"}',
            "Field 'input' must be text without lone surrogates. Received: {} "
            "'a\\ud800'. Correct or remove the line.",
        ),
    ],
)
def test_refuses_bad_lines(tmp_path, line, text):
    # The blank line counts: numbers are those that an editor shows.
    path = write(tmp_path, "semantic_parsing", "sw", GOOD + b"\n" + line + b"\n" + GOOD)
    place = f"{path}, line 3:"
    assert text.replace("{}", place) in refusal(lambda: load_xtreme_up(tmp_path))


@pytest.mark.parametrize("field", list(QA))
@pytest.mark.parametrize("task", ["qa_in_lang", "qa_cross_lang"])
def test_refuses_questions_without_a_field(tmp_path, task, field):
    rest = {name: text for name, text in QA.items() if name != field}
    path = write(tmp_path, task, "bn", QA, rest)
    assert refusal(lambda: load_xtreme_up(tmp_path)) == (
        f"Field {field!r} must be a string. Received: {path}, line 2: no such field, "
        f"among the fields {sorted(rest)}. Correct or remove the line."
    )


# "ní Èkó.": n 0, í 1 and 2, space 3, È 4 and 5, k 6, ó 7 and 8, full stop 9.
TEXT = "ní Èkó."


def places(start, limit, label="LOC"):
    return {"start_byte": start, "limit_byte": limit, "label": label}


RANGE = "A span must lie within the 10 bytes of its text and not be empty."
CUT = "A span must not cut a UTF-8 character."


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([places(4, 11)], f"{RANGE} Received: {{}} {places(4, 11)}. Correct or"),
        ([places(-1, 3)], RANGE),
        ([places(4, 4)], RANGE),
        ([places(9, 4)], RANGE),
        (
            [places(5, 9)],
            f"{CUT} Received: {{}} {places(5, 9)}, of bytes {TEXT.encode()[5:9]!r}. "
            "Count in bytes, not in characters.",
        ),
        ([places(4, 8)], CUT),
        (
            [places(4, 9), places(0, 6)],
            "Spans must not overlap. Received: {} bytes (0, 6) and (4, 9). Correct or "
            "remove one of them.",
        ),
        ([places(4, 9), places(4, 9)], "{} bytes (4, 9) and (4, 9)."),
        (["LOC"], "A span must be an object with 'start_byte', 'limit_byte' and"),
        ([{"start_byte": 4, "label": "LOC"}], "Field 'limit_byte' must be an integer."),
        ([places(4.0, 9)], "Field 'start_byte' must be an integer. Received: {} 4.0,"),
        ([places(True, 3)], "Field 'start_byte' must be an integer. Received: {} True"),
        ([places(4, 9, None)], "Field 'label' must be a string. Received: {} None,"),
        (None, "Field 'spans' must be a list. Received: {} None, among the fields"),
        (
            [places(4, 9, "A $$ B")],
            "Labels and entities must not hold '$$', which joins them in responses. "
            "Received: {} 'A $$ B: Èkó'. Remove the line.",
        ),
    ],
)
def test_refuses_bad_spans(tmp_path, spans, text):
    good = {"text": TEXT, "spans": [places(4, 9)]}
    path = write(tmp_path, "ner", "yo", good, {"text": TEXT, "spans": spans})
    place = f"{path}, line 2:"
    assert text.replace("{}", place) in refusal(lambda: load_xtreme_up(tmp_path))


# How it is scored.


def test_every_task_has_its_metric():
    assert dict(METRICS) == {
        "semantic_parsing": exact_match,
        "qa_in_lang": token_f1,
        "qa_cross_lang": token_f1,
        "translation": chrf,
        "ner": span_f1,
    }
    assert TASKS == tuple(METRICS) == tuple(LANGUAGES)


def test_the_published_numbers_of_languages():
    assert {task: len(names) for task, names in LANGUAGES.items()} == {
        "semantic_parsing": 24,
        "qa_in_lang": 9,
        "qa_cross_lang": 26,
        "translation": 93,
        "ner": 20,
    }
    for names in LANGUAGES.values():
        assert len(set(names)) == len(names)


def test_the_under_represented_languages():
    assert UNDER_REPRESENTED["semantic_parsing"] == (
        *("am", "be", "bn", "ha", "sw", "ta", "yo", "zu", "th"),
    )
    assert UNDER_REPRESENTED["qa_in_lang"] == ("bn", "id", "sw", "te")
    assert UNDER_REPRESENTED["ner"] == LANGUAGES["ner"]
    counts = {task: len(names) for task, names in UNDER_REPRESENTED.items()}
    assert counts["qa_cross_lang"] == 21
    assert counts["translation"] == 70


CELLS = {
    ("semantic_parsing", "am"): {"exact_match": 40.0, "chrf": 0.0},
    ("semantic_parsing", "sw"): {"exact_match": 60.0, "chrf": 0.0},
    ("semantic_parsing", "en"): {"exact_match": 90.0, "chrf": 0.0},
    ("translation", "sw"): {"exact_match": 0.0, "chrf": 30.0},
    ("qa_in_lang", "en"): {"token_f1": 10.0},
}


def test_task_scores_are_means_over_under_represented_languages():
    assert task_scores(CELLS) == {"semantic_parsing": 50.0, "translation": 30.0}


def test_task_scores_take_other_languages():
    others = {"semantic_parsing": ["en"], "qa_in_lang": ["en"]}
    assert task_scores(CELLS, others) == {"semantic_parsing": 90.0, "qa_in_lang": 10.0}


def test_task_scores_need_the_tasks_metric():
    cells = {("translation", "sw"): {"exact_match": 0.0}}
    assert refusal(lambda: task_scores(cells)) == (
        "The scores of task 'translation' must have its metric 'chrf'. Received: "
        "['exact_match'] for language='sw'. Evaluate with metrics={'chrf': "
        "METRICS['translation'], ...}."
    )
    assert "task='summary'" in refusal(lambda: task_scores({("summary", "sw"): {}}))


def test_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        xtreme_up.METRICS["ner"] = exact_match


# The guide.


def test_notebook_equals_its_source():
    jupytext = pytest.importorskip("jupytext", reason="extra `guides`")
    source = jupytext.read(GUIDES / "xtreme_up.py")
    notebook = jupytext.read(GUIDES / "xtreme_up.ipynb")

    def cells(notebook):
        return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]

    assert cells(source) == cells(notebook)


@pytest.mark.slow
@pytest.mark.guide
def test_guide_runs_on_miniature_files(tmp_path):
    environment = {**os.environ, "FLIX_OUTPUT": str(tmp_path / "output")}
    # Only what the guide makes itself.
    for name in ("XTREME_UP", "FLIX_PRESET"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, GUIDES / "xtreme_up.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout[-6000:])
    assert result.returncode == 0
    assert "no result on XTREME-UP" in result.stdout
    report = json.loads((tmp_path / "output" / "xtreme_up.json").read_text())
    assert report["miniature"] is True
    cells = {
        setting: {method: sorted(scores) for method, scores in by_method.items()}
        for setting, by_method in report["scores"].items()
    }
    languages = ("bn", "fi", "ta", "th")
    tasks = ("ner", "semantic_parsing", "translation")
    parsing = [f"semantic_parsing {language}" for language in languages]
    everything = [f"{task} {language}" for task in tasks for language in languages]
    assert cells == {
        "multilingual": dict.fromkeys(("FLix", "LoRA"), parsing),
        "multitask": dict.fromkeys(("FLix", "LoRA"), everything),
        "unseen pairs": dict.fromkeys(("FLix", "LoRA"), parsing[2:]),
    }
    # Both learn the easiest setting in their few steps.
    for scores in report["scores"]["multilingual"].values():
        assert sum(sum(s) for s in scores.values()) / len(scores) >= 50
