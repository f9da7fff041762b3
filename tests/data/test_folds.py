from __future__ import annotations

import copy

import pytest

from monai_basisprune.data import divide_datalist, load_split, prepare_datalist, write_datalist, write_synthetic_cohort
from monai_basisprune.errors import CohortError, ConfigurationError

SECTIONS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort")
    write_synthetic_cohort(path, patients=30, seed=0, image_size=32)
    return path


@pytest.fixture(scope="module")
def datalist(folder, tmp_path_factory):
    return prepare_datalist(folder, tmp_path_factory.mktemp("a") / "datalist.json", progress=False)


def patients(datalist, section):
    return {item["patient_id"] for item in datalist[section]}


def test_folds_cover_the_cohort_and_load(folder, datalist, tmp_path):
    before = copy.deepcopy(datalist)
    divided = [divide_datalist(datalist, seed, 3, fold) for seed, fold in enumerate(range(3))]
    assert datalist == before
    everyone = set.union(*(patients(datalist, name) for name in SECTIONS))
    tests = [patients(parts, "test") for parts in divided]
    assert set.union(*tests) == everyone
    assert sum(map(len, tests)) == len(everyone)
    assert len({parts["split_sha256"] for parts in divided}) == 3
    for fold, parts in enumerate(divided):
        assert (parts["split_source"], parts["fractions"], parts["seed"]) == (f"fold {fold} of 3", None, 0)
        write_datalist(parts, tmp_path / "datalist.json", image_paths=False)
        assert '"image"' not in (tmp_path / "datalist.json").read_text()
        for name in SECTIONS:
            found = load_split(tmp_path / "datalist.json", name, folder)
            assert found == load_split(parts, name, folder)


def test_folds_depend_neither_on_the_earlier_split_nor_on_the_salt(folder, datalist, tmp_path):
    other = prepare_datalist(folder, tmp_path / "datalist.json", seed=7, progress=False)
    images = [
        [item["image"] for name in SECTIONS for item in divide_datalist(source, 5, 3, 1, 2)[name]]
        for source in (datalist, other)
    ]
    assert images[0] == images[1]


def test_seeds_keep_the_test_section(datalist):
    divided = [divide_datalist(datalist, seed) for seed in range(3)]
    assert all(parts["test"] == datalist["test"] for parts in divided)
    assert len({parts["split_sha256"] for parts in divided}) == 3
    assert (divided[2]["seed"], divided[2]["test_seed"]) == (2, 0)


def test_a_split_of_the_table_stays_and_has_no_folds(datalist):
    source = {**datalist, "split_source": "labels table", "seed": None, "fractions": None}
    assert divide_datalist(source, 3) == source
    with pytest.raises(CohortError, match="has a split column, and 3 folds were asked for"):
        divide_datalist(source, 3, 3, 0)


def test_a_fold_must_be_named(datalist):
    with pytest.raises(ConfigurationError, match="fold must be a whole number from 0 to 2"):
        divide_datalist(datalist, 0, 3)
