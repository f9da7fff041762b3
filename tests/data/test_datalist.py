from __future__ import annotations

import copy
import json
import os
import stat

import pytest
from monai.data import DataLoader, Dataset, load_decathlon_datalist
from radiograph_files import radiograph, save, write_cohort

from monai_basisprune.data import LoadRadiographd, load_split, prepare_datalist
from monai_basisprune.errors import CohortError, ConfigurationError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("cohort") / "images", patients=20, images=2)
    output = folder.parent / "out" / "datalist.json"
    return folder, output, prepare_datalist(folder, output, progress=False)


def test_what_is_written(prepared):
    _, output, datalist = prepared
    assert json.loads(output.read_text()) == datalist
    assert datalist["class_names"] == ["negative", "positive"]
    assert (datalist["seed"], datalist["fractions"], datalist["format_version"]) == (0, [0.6, 0.2, 0.2], 1)
    assert datalist["split_source"] == "random"
    assert len(datalist["split_sha256"]) == 64
    assert [len(datalist[name]) for name in ("training", "validation", "test")] == [24, 8, 8]
    assert set(datalist["test"][0]) == {"image", "label", "case_id", "patient_id", "image_sha256"}
    assert sorted(path.name for path in output.parent.iterdir()) == ["datalist.json", "salt"]
    assert stat.S_IMODE(os.stat(output.parent / "salt").st_mode) == 0o600


def test_written_again_is_equal(prepared):
    folder, output, datalist = prepared
    before = output.read_bytes()
    assert prepare_datalist(folder, output, progress=False) == datalist
    assert output.read_bytes() == before


def test_hash_of_the_split_is_independent_of_paths(prepared, tmp_path):
    _, output, datalist = prepared
    folder = write_cohort(tmp_path / "images", patients=20, images=2)
    for path in folder.glob("*.dcm"):
        path.rename(folder / f"z{path.name}")
    table = (folder / "labels.csv").read_text().replace("\n0", "\nz0")
    (folder / "labels.csv").write_text(table)
    (tmp_path / "salt").write_bytes((output.parent / "salt").read_bytes())
    moved = prepare_datalist(folder, tmp_path / "datalist.json", progress=False)
    assert moved["split_sha256"] == datalist["split_sha256"]
    other = prepare_datalist(folder, tmp_path / "datalist.json", seed=1, progress=False)
    assert other["split_sha256"] != datalist["split_sha256"]


def test_loads_into_monai(prepared):
    folder, output, datalist = prepared
    items = load_split(output, "validation", folder)
    assert items == load_split(datalist, "validation", str(folder))
    assert set(items[0]) == {"image", "label", "case_id", "patient_id"}
    batch = next(iter(DataLoader(Dataset(items, LoadRadiographd("image")), batch_size=8)))
    assert batch["image"].shape == (8, 1, 12, 20)
    assert len(batch["patient_id"]) == 8
    raw = load_decathlon_datalist(output, is_segmentation=False, data_list_key="test", base_dir=folder)
    assert os.path.isfile(raw[0]["image"])


def test_split_column(tmp_path):
    folder = write_cohort(tmp_path, patients=6)
    sections = ["train", "val", "test", "train", "val", "test"]
    lines = (folder / "labels.csv").read_text().splitlines()
    table = ["image,label,split", *(f"{line},{part}" for line, part in zip(lines[1:], sections, strict=True))]
    (folder / "labels.csv").write_text("\n".join(table))
    datalist = prepare_datalist(folder, tmp_path / "out" / "d.json", progress=False)
    assert (datalist["split_source"], datalist["seed"], datalist["fractions"]) == ("labels table", None, None)
    assert [item["image"] for item in datalist["test"]] == ["003.dcm", "006.dcm"]
    (folder / "labels.csv").write_text("\n".join(table[:-1]) + "\n006.dcm,0,")
    with pytest.raises(CohortError, match="blank or unknown split"):
        prepare_datalist(folder, tmp_path / "out" / "d.json", progress=False)


def test_skipping_is_loud(tmp_path):
    folder = write_cohort(tmp_path / "in", patients=20)
    save(radiograph(number=90), folder / "unlabeled.dcm")
    with pytest.raises(CohortError, match="has no row"):
        prepare_datalist(folder, tmp_path / "d.json", progress=False)
    assert not (tmp_path / "d.json").exists()
    with pytest.warns(UserWarning, match="(?s)left out of the datalist, 1 problems.*has no row in the labels table"):
        datalist = prepare_datalist(folder, tmp_path / "d.json", on_problem="skip", progress=False)
    assert datalist["skipped_problems"] == 1


def test_damaged_salt(prepared, tmp_path):
    folder, _, _ = prepared
    (tmp_path / "salt").write_text("")
    with pytest.raises(CohortError, match="'salt' beside the datalist should hold at least 16 bytes"):
        prepare_datalist(folder, tmp_path / "d.json", progress=False)


def test_fractions_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigurationError, match="fractions"):
        prepare_datalist(tmp_path / "none", tmp_path / "d.json", fractions=(1, 1, 1))


def resealed(datalist, change):
    """Change a datalist and seal it again, as a program with an error would."""
    from monai_basisprune.data.datalist import split_hash

    changed = copy.deepcopy(datalist)
    change(changed)
    changed["split_sha256"] = split_hash(changed)
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["test"][0].update(image="../x.dcm"), "image path that leaves dataset_dir"),
        (lambda d: d["test"][0].update(image="/etc/passwd"), "image path that leaves dataset_dir"),
        (lambda d: d["test"][0].update(image="C:\\x.dcm"), "image path that leaves dataset_dir"),
        (lambda d: d["test"][0].update(image="none.dcm"), "has no file in dataset_dir"),
        (lambda d: d["test"][0].update(patient_id=d["training"][0]["patient_id"]), "is in training, test"),
        (lambda d: d["test"][0].update(case_id=d["training"][0]["case_id"]), "is in training and again in test"),
    ],
)
def test_unsafe_content_is_refused(prepared, change, words):
    folder, _, datalist = prepared
    with pytest.raises(CohortError, match=words):
        load_split(resealed(datalist, change), "test", folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["test"].append(d["training"].pop()), "does not match its split_sha256"),
        (lambda d: d["test"][0].update(label=1 - d["test"][0]["label"]), "does not match its split_sha256"),
        (lambda d: d.pop("validation"), "section validation: is missing"),
        (lambda d: d.update(test=[]), "section test: is empty"),
        (lambda d: d["test"][1].pop("patient_id"), "section test, item 1: must have the texts"),
        (lambda d: d["test"][1].update(label=2), "section test, item 1: must have a label"),
        (lambda d: d["test"][1].update(label=True), "section test, item 1: must have a label"),
        (lambda d: d.update(format_version=2), "format_version '2', known is 1"),
        (lambda d: d.pop("class_names"), "class_names: must be a list"),
    ],
)
def test_wrong_content_is_refused(prepared, change, words):
    folder, _, datalist = prepared
    changed = copy.deepcopy(datalist)
    change(changed)
    with pytest.raises(CohortError, match=words):
        load_split(changed, "training", folder)


def test_wrong_files_and_sections(prepared, tmp_path):
    folder, output, _ = prepared
    with pytest.raises(CohortError, match="'holdout' was asked for; a datalist has training, validation, test"):
        load_split(output, "holdout", folder)
    with pytest.raises(CohortError, match=r"cannot be opened .FileNotFoundError"):
        load_split(tmp_path / "none.json", "test", folder)
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(CohortError, match="not valid JSON"):
        load_split(tmp_path / "d.json", "test", folder)
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(CohortError, match="holds no sections"):
        load_split(tmp_path / "d.json", "test", folder)


def test_a_datalist_without_paths_finds_the_images_by_content(tmp_path):
    folder = write_cohort(tmp_path / "images", patients=20, images=2)
    output = tmp_path / "out" / "datalist.json"
    returned = prepare_datalist(folder, output, progress=False, image_paths=False)
    wanted = load_split(returned, "test", folder)
    assert "image" not in json.loads(output.read_text())["test"][0]
    assert ".dcm" not in output.read_text()
    assert load_split(output, "test", folder) == wanted
    for path in sorted(folder.rglob("*.dcm")):
        path.rename(folder / f"renamed_{path.name}")
    found = load_split(output, "test", folder)
    assert [item["case_id"] for item in found] == [item["case_id"] for item in wanted]
    assert all("renamed_" in item["image"] and os.path.isfile(item["image"]) for item in found)
    os.remove(found[0]["image"])
    with pytest.raises(CohortError, match=f"case {found[0]['case_id']}: has no file in dataset_dir"):
        load_split(output, "test", folder)
