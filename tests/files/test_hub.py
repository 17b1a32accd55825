"""Hubs, played by a folder: their clients' own signatures check every call."""

import json
import shutil
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix.evaluation.scores import Scores
from keras_flix.files import hub
from keras_flix.files.adapter_file import read_adapters
from keras_flix.text_metrics import exact_match

if keras.config.backend() != "torch":
    reason = "hubs hold files, which no backend sees: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

huggingface_hub = pytest.importorskip("huggingface_hub", reason="extra `hub`")
kagglehub = pytest.importorskip("kagglehub", reason="extra `hub`")

FILE = "adapters.flix.safetensors"
BATCH = {**rows(), "task": "qa", "language": "sw"}


class Folders:
    """Plays both hubs: a repository is a folder, and nothing leaves the disk."""

    def __init__(self, root):
        self.root = root
        self.made = {}

    def upload(self, repository, folder):
        shutil.copytree(folder, self.root / repository, dirs_exist_ok=True)

    def create_repo(self, repo_id, *, private=None, exist_ok=False, **_):
        self.made[repo_id] = private

    def upload_folder(self, *, repo_id, folder_path, commit_message, **_):
        assert repo_id in self.made
        self.upload(repo_id, folder_path)
        self.message = commit_message

    def files(self, repo_id, revision=None, **_):
        folder = self.root / repo_id
        found = [p for p in folder.rglob("*") if p.is_file()]
        return [p.relative_to(folder).as_posix() for p in found]

    def model_upload(
        self, handle, local_model_dir, license_name=None, version_notes="", **_
    ):
        self.upload(handle, local_model_dir)
        self.message = version_notes


@pytest.fixture
def folders(tmp_path, monkeypatch):
    place = Folders(tmp_path / "hub")

    def stand_in(module, name, function):
        spec = mock.create_autospec(getattr(module, name), side_effect=function)
        monkeypatch.setattr(module, name, spec)
        return spec

    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.side_effect = place.create_repo
    api.upload_folder.side_effect = place.upload_folder
    api.list_repo_files.side_effect = place.files
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    place.get = stand_in(
        huggingface_hub,
        "hf_hub_download",
        lambda repo_id, filename, **_: str(place.root / repo_id / filename),
    )
    place.snapshot = stand_in(
        huggingface_hub,
        "snapshot_download",
        lambda repo_id, **_: str(place.root / repo_id),
    )
    stand_in(kagglehub, "model_upload", place.model_upload)
    place.kaggle = stand_in(
        kagglehub,
        "model_download",
        lambda handle, path=None, **_: str(place.root / handle / (path or "")),
    )
    return place


def adapted(seed=0):
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets=["hidden"], rank=2)
    return randomize(model, seed=seed)


def assert_loads(handle, model):
    loaded = keras_flix.load_adapters(make_mlp(), handle)
    np.testing.assert_array_equal(to_numpy(loaded(BATCH)), to_numpy(model(BATCH)))


@pytest.mark.parametrize("place", ["hf://me/cldr", "kaggle://me/cldr/keras/small"])
def test_a_model_there_and_back(folders, place):
    model = adapted()
    handle = keras_flix.push_adapters(model, place, message="first", license="mit")
    assert handle == f"{place}/{FILE}"
    assert folders.message == "first"
    repository = folders.root / place.partition("://")[2]
    assert sorted(p.name for p in repository.iterdir()) == ["README.md", FILE]
    assert_loads(handle, model)
    # With one file there, the handle need not name it.
    assert_loads(place, model)
    other = keras_flix.enable_flix(
        make_mlp(), {**FEATURES, "language": ["en"]}, targets=["hidden"], rank=2
    )
    keras_flix.update_from(other, place)
    assert other._adaptation.schema["language"].values == ("en", "sw", "yo")


def test_a_file_keeps_its_name_and_its_bytes(folders, tmp_path):
    path = tmp_path / "mine.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    handle = keras_flix.push_adapters(path, "hf://me/cldr", private=True, card=False)
    assert handle == "hf://me/cldr/mine.flix.safetensors"
    assert folders.made == {"me/cldr": True}
    there = folders.root / "me/cldr"
    assert [p.name for p in there.iterdir()] == ["mine.flix.safetensors"]
    assert (there / "mine.flix.safetensors").read_bytes() == path.read_bytes()
    handle = keras_flix.push_adapters(path, f"hf://me/cldr/two{path.name}")
    assert handle == "hf://me/cldr/twomine.flix.safetensors"
    text = "must hold one file .* Received: 'hf://me/cldr' with \\['mine.*', 'twomine"
    with pytest.raises(ValueError, match=text):
        keras_flix.load_adapters(make_mlp(), "hf://me/cldr")
    assert_loads(handle, adapted())


def test_revisions_reach_the_clients(folders):
    keras_flix.push_adapters(adapted(), "hf://me/cldr")
    hub.download("hf://me/cldr@v2")
    assert folders.get.call_args.kwargs == {
        "repo_id": "me/cldr",
        "revision": "v2",
        "filename": FILE,
    }
    keras_flix.push_adapters(adapted(), "kaggle://me/cldr/keras/small")
    shutil.copytree(
        folders.root / "me/cldr/keras/small", folders.root / "me/cldr/keras/small/3"
    )
    hub.download(f"kaggle://me/cldr/keras/small/3/{FILE}")
    assert folders.kaggle.call_args.args == ("me/cldr/keras/small/3", FILE)


def lora(tmp_path, **config):
    folder = tmp_path / "lora"
    folder.mkdir()
    config = {"r": 8, "target_modules": ["q_proj", "v_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("place", ["hf://me/lora", "kaggle://me/lora/keras/small"])
def test_a_lora_directory_there_and_back(folders, tmp_path, place):
    folder = lora(tmp_path, base_model_name_or_path="google/gemma")
    assert keras_flix.push_adapters(folder, place) == place
    fetched = hub.download(place)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()
    card = (fetched / "README.md").read_text()
    assert 'base_model: "google/gemma"' in card
    assert "LoRA of rank 8 on `q_proj`, `v_proj`." in card
    where = (
        f"keras_flix.files.hub.download({place!r})"
        if "kaggle" in place
        else "'me/lora'"
    )
    assert f"PeftModel.from_pretrained(base, {where})" in card
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(make_mlp(), place)
    assert str(error.value) == (
        "Adapters are loaded from a file that ends in '.flix.safetensors'. Received: "
        f"'{place}', which is a LoRA in the form of PEFT. Load that with "
        "`peft.PeftModel.from_pretrained`."
    )


def test_the_card_of_a_classifiers_lora(folders, tmp_path):
    options = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    keras_flix.push_adapters(lora(tmp_path, **options), "hf://me/lora")
    card = (folders.root / "me/lora/README.md").read_text()
    assert "LoRA of rank 8 on `q_proj`, `v_proj`, with `classifier` as a whole." in card
    assert "base = AutoModelForSequenceClassification.from_pretrained('...')" in card


@pytest.mark.parametrize("place", ["hf://me/grid", "kaggle://me/grid/keras/small"])
def test_many_loras_there_and_back(folders, tmp_path, place):
    grid = tmp_path / "grid"
    grid.mkdir()
    (grid / "index.json").write_text("{}")
    for name in ("qa-en", "qa-sw"):
        lora(tmp_path).rename(grid / name)
    assert keras_flix.push_adapters(grid, place) == place
    fetched = hub.download(place)
    found = sorted(
        p.relative_to(fetched).as_posix() for p in fetched.rglob("*.safetensors")
    )
    assert found == [f"qa-{x}/adapter_model.safetensors" for x in ("en", "sw")]
    card = (fetched / "README.md").read_text()
    assert "2 combinations" in card and "`qa-en`, `qa-sw`" in card
    where = f"keras_flix.files.hub.download({place!r}) / 'qa-en')"
    where = "'me/grid', subfolder='qa-en')" if place.startswith("hf") else where
    assert f"PeftModel.from_pretrained(base, {where}" in card
    if place.startswith("hf"):
        patterns = folders.snapshot.call_args.kwargs["allow_patterns"]
        assert "*/adapter_model.safetensors" in patterns
    (grid / "qa-sw" / "run.py").touch()
    with pytest.raises(ValueError, match="qa-sw', with 'run.py'"):
        keras_flix.push_adapters(grid, place)
    (grid / "qa-sw" / "run.py").rename(grid / "run.py")
    with pytest.raises(ValueError, match="grid', with 'run.py'"):
        keras_flix.push_adapters(grid, place)


def test_one_lora_per_value(folders, tmp_path):
    folder = tmp_path / "values"
    folder.mkdir()
    (folder / "index.json").write_text('{"format": "keras_flix.values"}')
    for name in ("task-qa", "language-sw"):
        lora(tmp_path).rename(folder / name)
    keras_flix.push_adapters(folder, "hf://me/values")
    card = (hub.download("hf://me/values") / "README.md").read_text()
    assert "\n2 values of featurized low-rank adapters (FLix), each in a" in card
    assert "its own as a LoRA on `" in card


def test_a_directorys_own_card_is_kept(folders, tmp_path):
    folder = lora(tmp_path)
    (folder / "README.md").write_text("mine")
    keras_flix.push_adapters(folder, "hf://me/lora")
    assert (folders.root / "me/lora/README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["weights.bin", "code.py", "inner"])
def test_a_directory_with_other_files_is_refused(folders, tmp_path, name):
    folder = lora(tmp_path)
    (folder / name).mkdir() if name == "inner" else (folder / name).touch()
    text = (
        "A directory that is pushed must hold adapter_config.json and "
        "adapter_model.safetensors, and besides only files that end in .json, "
        f".safetensors, .md. Received: '{folder}', with '{name}'. Push what "
        "`export_lora` or `export_loras` wrote."
    )
    check_refused(folders, folder, "hf://me/lora", text)
    (folder / "adapter_config.json").unlink()
    text = text.replace(f"with '{name}'", "without 'adapter_config.json'")
    check_refused(folders, folder, "hf://me/lora", text)


def check_refused(folders, source, place, text):
    with pytest.raises(ValueError) as error:
        keras_flix.push_adapters(source, place)
    assert str(error.value) == text
    assert not folders.root.exists() and not folders.made


def test_what_is_no_adapter_file_is_not_pushed(folders, tmp_path):
    path = tmp_path / "bad.flix.safetensors"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="must have been written by `save_adapters`"):
        keras_flix.push_adapters(path, "hf://me/cldr")
    text = (
        "The model must have been adapted by `enable_flix`. Received: a Functional "
        "without adapters. Call `enable_flix(model, ...)` first."
    )
    check_refused(folders, make_mlp(), "hf://me/cldr", text)
    text = (
        "Adapters are pushed to a repository, not to one of its revisions. Received: "
        "handle='hf://me/cldr@v2'. Leave 'v2' out."
    )
    check_refused(folders, adapted(), "hf://me/cldr@v2", text)
    text = (
        "The name of a pushed file must not be in a folder of the repository. "
        f"Received: 'inner/{FILE}'. Leave the folder out."
    )
    check_refused(folders, adapted(), f"hf://me/cldr/inner/{FILE}", text)


def test_file_names_of_a_repository_are_checked(folders, tmp_path):
    for name in (f"../{FILE}", f"/etc/{FILE}", f"a/../../{FILE}"):
        api = huggingface_hub.HfApi()
        api.list_repo_files.side_effect = lambda *_, name=name, **__: [name]
        with pytest.raises(ValueError, match="Names in a handle must consist of"):
            hub.download("hf://me/cldr")
        assert not folders.get.called


@pytest.mark.parametrize("name", ["model.bin", "adapters.pkl", "config.json"])
def test_other_files_are_not_fetched(folders, name):
    with pytest.raises(ValueError, match="A file on a hub must end in"):
        hub.download(f"hf://me/cldr/{name}")
    assert not folders.get.called


def test_an_empty_repository(folders):
    text = (
        "A repository must hold one file that ends in '.flix.safetensors', if the "
        "handle names none. Received: 'hf://me/none' with none. Check the handle."
    )
    with pytest.raises(ValueError) as error:
        hub.download("hf://me/none")
    assert str(error.value) == text


def test_the_card_says_what_is_in_the_file(folders):
    features = [
        keras_flix.Feature("task", ["qa", "a|b`c\n## d"], rank={"qa": 1, "*": 2}),
        keras_flix.Feature("domain", ["web"], multiple=True, alpha=4),
        keras_flix.Feature("shared", always=True),
    ]
    model = keras_flix.enable_flix(make_mlp(), features, rank=2, targets=["hidden"])
    scores = Scores({"task": ["qa", "qa"]}, ["a", "b"], ["a", "a"], {"em": exact_match})
    handle = keras_flix.push_adapters(
        model, "hf://me/cldr", base_model="me/gemma", license="mit", scores=scores
    )
    card = (folders.root / "me/cldr/README.md").read_text()
    assert card.startswith(
        '---\nlibrary_name: keras-flix\ntags: ["keras", "flix"]\n'
        'license: "mit"\nbase_model: "me/gemma"\n---\n\n# cldr\n'
    )
    assert "| `task` | `qa`, `a\\|b'c ## d` | 1 to 2 | 1 | one per example |" in card
    assert "| `domain` | `web` | 2 | 4 / rank | several per example |" in card
    assert "| `shared` | `shared` | 2 | 1 | always active |" in card
    assert f"fingerprint `{keras_flix.base_fingerprint(make_mlp()).digest}`" in card
    assert f"load_adapters(model, {handle!r})" in card
    assert scores.table("task") in card
    huggingface_hub.ModelCard(card)
    two = {"seen": scores, "unseen": scores}
    keras_flix.push_adapters(model, "hf://me/cldr", scores=two)
    card = (folders.root / "me/cldr/README.md").read_text()
    assert "### seen" in card and "### unseen" in card and "license" not in card


def test_metadata_cannot_be_added_by_names(folders):
    evil = 'me/x"\ntags: [evil]'
    keras_flix.push_adapters(adapted(), "hf://me/cldr", base_model=evil, license=evil)
    card = huggingface_hub.ModelCard((folders.root / "me/cldr/README.md").read_text())
    assert card.data.tags == ["keras", "flix"]
    assert card.data.license == evil


def test_the_clients_are_optional(monkeypatch):
    for handle, name in (
        ("hf://me/cldr", "huggingface_hub"),
        ("kaggle://me/cldr/keras/small", "kagglehub"),
    ):
        what = "An 'hf://'" if name == "huggingface_hub" else "A 'kaggle://'"
        monkeypatch.setitem(sys.modules, name, None)
        text = (
            f"{what} handle needs the package {name}, which is "
            "not installed. Install it with: pip install 'keras-flix[hub]'"
        )
        with pytest.raises(ImportError) as error:
            hub.download(handle)
        assert str(error.value) == text
        with pytest.raises(ImportError):
            keras_flix.push_adapters(adapted(), handle)


def test_read_adapters_takes_handles(folders):
    handle = keras_flix.push_adapters(adapted(), "hf://me/cldr")
    assert read_adapters(handle).source == handle
