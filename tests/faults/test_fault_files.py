"""Files that are damaged or made to do harm are refused, and nothing else happens."""

import dataclasses
import functools
import pickle
import resource
import time
import zipfile

import hypothesis
import keras
import numpy as np
import pytest
from faults import file_corpus
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows
from hypothesis import strategies

import keras_flix
from keras_flix.exports import lora
from keras_flix.files import hub
from keras_flix.files.adapter_file import read_adapters, write_adapters

INPUTS = {**rows(), "task": "qa", "language": ["sw", None, "en"]}
SECONDS = 10
"""Of the processor's time, that no file may take."""


def adapted(seed=0):
    model = keras_flix.enable_flix(
        make_mlp(), FEATURES, rank=2, alpha=4, targets="all-linear"
    )
    return randomize(model, seed=seed)


@pytest.fixture(scope="module")
def model():
    return adapted()


@pytest.fixture(scope="module")
def plain():
    return make_mlp()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.flix.safetensors"
    keras_flix.save_adapters(adapted(seed=1), path)
    return path


def values(model):
    return [to_numpy(v).tobytes() for v in model.variables]


def check_refused(models, path, load=keras_flix.load_adapters):
    """Every model refuses the file, soon, and stays as it was."""
    for model in models:
        before, kind, start = values(model), type(model), time.process_time()
        refused = file_corpus.read_or_refuse(path, lambda p, m=model: load(m, p))
        assert refused is None
        assert time.process_time() - start < SECONDS
        assert type(model) is kind and values(model) == before


def test_files_of_other_kinds_are_refused_and_run_nothing(
    tmp_path, model, plain, record_fault
):
    sprung = tmp_path / "sprung"
    files = file_corpus.foreign(sprung)
    # The trap works where a file is trusted.
    pickle.loads(files["a pickle"])
    sprung.rmdir()
    path = tmp_path / "foreign.flix.safetensors"
    for data in files.values():
        path.write_bytes(data)
        check_refused([model, plain], path)
    assert not sprung.exists()
    record_fault("files: of other kinds", files=len(files), accepted=0)


@pytest.mark.slow
def test_hostile_files_are_refused(tmp_path, saved, model, plain, record_fault):
    path = tmp_path / "hostile.flix.safetensors"
    files = file_corpus.hostile(saved.read_bytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in files.items():
        path.write_bytes(data)
        try:
            check_refused([model, plain], path)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert grown < 1500
    record_fault("files: made to do harm", files=len(files), accepted=0)


def test_a_file_of_a_terabyte_takes_no_memory(tmp_path, saved, model, plain):
    header, own, data = file_corpus.split(saved.read_bytes())
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    start, (count, rank, _) = header[last]["data_offsets"][0], header[last]["shape"]
    assert rank == 2 and last.endswith("_b")
    width = 2**40 // (4 * count * rank)
    size = 4 * count * rank * width
    header[last] = {
        "dtype": "F32",
        "shape": [count, rank, width],
        "data_offsets": [start, start + size],
    }
    path = tmp_path / "sparse.flix.safetensors"
    path.write_bytes(file_corpus.joined(header, own, data[:start]))
    # Nothing but its length is on the disk.
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size + size)
    check_refused([model, plain], path)


@pytest.mark.slow
def test_every_flipped_bit_and_every_length_is_noticed(
    tmp_path, saved, load, record_fault
):
    whole, expected = saved.read_bytes(), read_adapters(saved)
    # Without a digest, most flips in the tables would pass.
    old = file_corpus.joined(*file_corpus.split(whole))
    path = tmp_path / "damaged.flix.safetensors"
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert not file_corpus.same(read_adapters(path), expected)
    # A bit of every byte; from eight times the load on, every bit.
    step = max(1, 8 // load)
    harmless = 0
    flips = [(i, bit) for i in range(len(whole)) for bit in range(i % step, 8, step)]
    for place, bit in flips:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        found = file_corpus.read_or_refuse(path)
        if found is not None:
            assert file_corpus.same(found, expected), (place, bit)
            harmless += 1
    # Such as that of a digit of the digest's own escape; none of a table.
    assert harmless <= len(flips) // 100
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert file_corpus.read_or_refuse(path) is None, length
    record_fault(
        "files: bits flipped and bytes cut off",
        bits_flipped=len(flips),
        lengths=len(whole),
        without_effect=harmless,
        accepted_with_another_content=0,
    )


def test_a_file_without_a_digest_loads(tmp_path, saved):
    path = tmp_path / "old.flix.safetensors"
    path.write_bytes(file_corpus.joined(*file_corpus.split(saved.read_bytes())))
    # The fingerprint of the base has one of its own.
    assert saved.read_bytes().count(b'"digest') == 2
    assert path.read_bytes().count(b'"digest') == 1
    assert file_corpus.same(read_adapters(path), read_adapters(saved))
    write_adapters(read_adapters(path), path)
    assert path.read_bytes() == saved.read_bytes()


def test_what_could_not_be_read_is_not_written(tmp_path, saved):
    adapters, before = read_adapters(saved), saved.read_bytes()
    schema = keras_flix.FeatureSchema({"task": ["a" * 17 * 2**20]}).resolve(rank=2)
    with pytest.raises(ValueError, match="may take 16,777,216 bytes. Received: 17,"):
        write_adapters(dataclasses.replace(adapters, schema=schema), saved)
    assert saved.read_bytes() == before


def test_numbers_that_are_none_are_kept(tmp_path):
    """A value whose training diverged is not lost, nor does it take others along."""
    model, path = adapted(), tmp_path / "nan.flix.safetensors"
    table = model.get_layer("head")._tables.named_variables["flix_task_a"]
    broken = to_numpy(table).copy()
    broken[1] = np.nan
    table.assign(broken)
    keras_flix.save_adapters(model, path)
    found = keras_flix.load_adapters(adapted(seed=2), path)
    assert values(found) == values(model)


@pytest.mark.parametrize("values", [["../../up", "/etc", "a/b", "..", "con\x00"]])
def test_values_never_lead_out_of_a_directory(values):
    names = lora._directory_names([{"task": value} for value in values])
    assert len(set(names)) == len(values)
    assert all("/" not in n and "\x00" not in n and n not in (".", "..") for n in names)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "[" * 100_000, '{"a":' * 100_000, "\x00", '"text"'),
        *('{"target_modules": 3}', '{"target_modules": [[], {}]}'),
    ],
)
def test_a_hostile_lora_is_not_pushed(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="adapter_config.json"):
        hub.push_adapters(tmp_path, "hf://me/lora")


def test_any_bytes_are_refused_or_read(tmp_path, saved, plain, load, record_fault):
    whole, own = saved.read_bytes(), adapted()
    path = tmp_path / "fuzzed.flix.safetensors"
    counts = {"inputs": 0, "refused": 0, "read": 0, "loaded": 0}
    slowest = 0.0

    @hypothesis.settings(
        max_examples=400 * load,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    # A feature whose `multiple`, then whose `always` is null.
    @hypothesis.example(b"\x02\x00\x01\x1f\x94\xe4")
    @hypothesis.example(b"\x02\x00\x01\x1f\x94n")
    @hypothesis.given(strategies.binary(max_size=60))
    def run(data):
        nonlocal slowest
        path.write_bytes(file_corpus.fuzzed(whole, data))
        start, before = time.process_time(), values(own)
        found = file_corpus.read_or_refuse(path)
        counts["inputs"] += 1
        counts["refused" if found is None else "read"] += 1
        if found is not None:
            file_corpus.check(found)
        loaded = file_corpus.read_or_refuse(
            path, lambda p: keras_flix.load_adapters(own, p)
        )
        if loaded is None:
            assert values(own) == before
            # Into a plain model, adapters of other features may fit.
            if found is None:
                check_refused([plain], path)
        else:
            counts["loaded"] += 1
            assert found is not None
            tables = [found.tables[name].tobytes() for name in sorted(found.tables)]
            assert set(tables) <= set(values(own))
        slowest = max(slowest, time.process_time() - start)

    run()
    assert slowest < SECONDS
    record_fault("files: any bytes", **counts, crashes=0)


# Keras' own files of adapted models. -------------------------------------------


def load_weights(model, path):
    model.load_weights(path)
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_damaged_weights_are_refused(tmp_path, suffix, model, load, record_fault):
    path, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    save = model.save_weights if suffix == ".weights.h5" else model.save
    save(path)
    whole, own = path.read_bytes(), adapted(seed=3)
    generator = np.random.default_rng(0)
    count = 10 * load

    for _ in range(count):
        changed = bytearray(whole)
        changed[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        damaged.write_bytes(changed)
        before = values(own)
        if file_corpus.read_or_refuse(damaged, functools.partial(load_weights, own)):
            # In the names of a ZIP archive, some bits say nothing.
            assert values(own) == values(model) and suffix == ".keras"
        else:
            assert values(own) == before
        own = own if values(own) == before else adapted(seed=3)
    for length in generator.integers(len(whole) - 100, size=count):
        damaged.write_bytes(whole[:length])
        check_refused([own], damaged, load_weights)
    record_fault(f"files: damaged {suffix}", bits_flipped=count, lengths=count)
    own.load_weights(path)
    assert values(own) == values(model)


@pytest.mark.parametrize("seeking_forgets", [False, True])
def test_load_model_refuses_damaged_weights(
    tmp_path, model, load, record_fault, monkeypatch, seeking_forgets
):
    """Where a checksum is wrong, Keras reads on by a way that may know of none.

    Newer Pythons compare no checksum of a file in an archive once it is read from
    another place than its beginning, as HDF5 does.
    """
    path, damaged = tmp_path / "whole.keras", tmp_path / "damaged.keras"
    model.save(path)
    whole = path.read_bytes()
    if seeking_forgets:
        seek = zipfile.ZipExtFile.seek

        def forgetting(self, *args):
            self._expected_crc = None
            return seek(self, *args)

        monkeypatch.setattr(zipfile.ZipExtFile, "seek", forgetting)
    tables = [to_numpy(v).tobytes() for v in model.trainable_variables][: 2 * load]
    for table in tables:
        changed = bytearray(whole)
        changed[whole.index(table) + 3] ^= 1
        damaged.write_bytes(changed)
        with pytest.raises((ValueError, zipfile.BadZipFile), match=r"damaged|CRC"):
            keras.models.load_model(damaged)
    record_fault("files: damaged .keras, load_model", bits_flipped=len(tables))
    assert values(keras.models.load_model(path)) == values(model)


def test_weights_of_a_missing_file_are_told_as_ever(tmp_path, model):
    with pytest.raises(FileNotFoundError):
        model.load_weights(tmp_path / "none.weights.h5")


def test_a_keras_file_writes_nothing_outside(tmp_path, model):
    path, folder = tmp_path / "model.keras", tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../evil", "../../evil", f"{tmp_path}/evil", "assets/../../evil"):
            archive.writestr(name, "evil")
    try:
        assert keras.models.load_model(path).name == model.name
    except ValueError as error:
        assert "evil" in str(error) or "path" in str(error)
    assert not list(tmp_path.rglob("evil"))


def test_a_keras_file_runs_no_code(tmp_path):
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Lambda(lambda t: t * 2, name="code")(x)
    outputs = keras.layers.Dense(4, name="head")(hidden)
    model = keras_flix.enable_flix(
        keras.Model({"x": x}, outputs), FEATURES, targets="all-linear"
    )
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ValueError, match="Lambda|lambda|unsafe"):
        keras.models.load_model(path)
    # As an adapter file, it is none.
    named = path.rename(tmp_path / "model.flix.safetensors")
    assert file_corpus.read_or_refuse(named) is None
