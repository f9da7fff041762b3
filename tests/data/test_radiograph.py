from __future__ import annotations

import importlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, set_track_meta
from radiograph_files import radiograph, ramp, save, uid

import monai_basisprune.data as data
from monai_basisprune.data import LoadRadiographd, read_radiograph
from monai_basisprune.errors import CohortError


def render(tmp_path, *args, implicit=False, **elements):
    return read_radiograph(save(radiograph(*args, **elements), tmp_path / "image.dcm", implicit))


def unit(values):
    return (values - values.min()) / np.ptp(values)


def test_full_range_without_a_window(tmp_path):
    image, info = render(tmp_path)
    assert image.dtype == np.float32
    assert image.shape == (12, 20) == (info.rows, info.columns)
    np.testing.assert_allclose(image, unit(ramp()), atol=1e-6)
    assert (info.low, info.high, info.display_transform, info.modality_transform) == (100, 3900, "full range", "none")
    assert not info.inverted


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", None, False),
    ],
)
@pytest.mark.parametrize("windowed", [False, True])
def test_inverted_once_and_never_twice(tmp_path, photometric, shape, inverted, windowed):
    elements = {"PhotometricInterpretation": photometric}
    if shape:
        elements["PresentationLUTShape"] = shape
    if windowed:
        elements.update(WindowCenter=2000, WindowWidth=3800, VOILUTFunction="LINEAR_EXACT")
    image, info = render(tmp_path, **elements)
    expected = unit(ramp())
    np.testing.assert_allclose(image, 1 - expected if inverted else expected, atol=1e-6)
    assert info.inverted is inverted


def test_nothing_but_padding_is_refused(tmp_path):
    with pytest.raises(CohortError, match="nothing but pixel padding"):
        render(tmp_path, np.full((4, 5), 7), PixelPaddingValue=7)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope of 0"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "color image .*3.*RGB.*expected 1 sample"),
        ({"NumberOfFrames": 3}, "multi-frame"),
        ({"WindowCenter": 3}, "only one of WindowCenter and WindowWidth"),
        ({"WindowCenter": 3, "WindowWidth": 0}, "WindowWidth too small"),
        ({"WindowCenter": 9000, "WindowWidth": 10}, "constant image after its window LINEAR"),
        ({"BitsStored": 17}, "impossible pixel layout .*BitsStored 17"),
        ({"PresentationLUTShape": "LIN OD"}, "unknown PresentationLUTShape; known are IDENTITY, INVERSE"),
        ({"VOILUTFunction": "CUBIC"}, "unknown VOILUTFunction; known are LINEAR, LINEAR_EXACT, SIGMOID"),
        ({"Rows": 13}, "cannot be decoded .*copy or export it again"),
        ({"PixelData": None}, "holds no image"),
    ],
)
def test_refusals_name_the_image_and_what_to_do(tmp_path, elements, words):
    with pytest.raises(CohortError, match=words) as caught:
        render(tmp_path, **elements)
    assert f"SOPInstanceUID {uid(1)}" in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "abc"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_rescale_that_is_not_finite(tmp_path, keyword, text):
    dataset = radiograph(RescaleSlope="1111111", RescaleIntercept="1111111")
    content = save(dataset, tmp_path / "a.dcm").read_bytes()
    place = content.index(b"1111111", content.index(b"\x53\x10DS" if keyword == "RescaleSlope" else b"\x52\x10DS"))
    (tmp_path / "a.dcm").write_bytes(content[:place] + text.ljust(7).encode() + content[place + 7 :])
    with pytest.raises(CohortError, match=f"{keyword} that is not a finite number"):
        read_radiograph(tmp_path / "a.dcm")


def test_constant_image_and_missing_file(tmp_path):
    with pytest.raises(CohortError, match="constant image"):
        render(tmp_path, np.full((4, 5), 7))
    with pytest.raises(CohortError, match=r"cannot be opened .FileNotFoundError") as caught:
        read_radiograph(tmp_path / "Doe^John.dcm")
    assert "Doe" not in str(caught.value)


def test_load_radiographd(tmp_path):
    save(radiograph(), tmp_path / "a.dcm")
    transform = pickle.loads(pickle.dumps(LoadRadiographd(keys="image")))
    item = {"image": str(tmp_path / "a.dcm"), "label": 1}
    loaded = transform(item)
    assert isinstance(loaded["image"], MetaTensor)
    assert loaded["image"].dtype == torch.float32
    assert loaded["image"].shape == (1, 12, 20)
    assert str(tmp_path) not in str(loaded["image"].meta)
    assert item["image"] == str(tmp_path / "a.dcm")
    assert LoadRadiographd("other", allow_missing_keys=True)(item) == item
    with pytest.raises(KeyError, match="other"):
        LoadRadiographd("other")(item)
    set_track_meta(False)
    try:
        assert type(transform(item)["image"]) is torch.Tensor
    finally:
        set_track_meta(True)


def test_error_names_the_case(tmp_path):
    with pytest.raises(CohortError, match="case_id abc"):
        LoadRadiographd("image")({"image": tmp_path / "none.dcm", "case_id": "abc"})


def test_several_workers(tmp_path):
    items = [{"image": str(save(radiograph(number=i), tmp_path / f"{i}.dcm")), "label": i % 2} for i in range(1, 5)]
    batch = next(iter(DataLoader(Dataset(items, LoadRadiographd("image")), batch_size=4, num_workers=2)))
    assert batch["image"].shape == (4, 1, 12, 20)


def test_public_names_are_not_names_of_monai():
    names = set()
    for module in ("transforms", "data", "handlers", "networks.nets", "bundle", "engines", "metrics", "losses"):
        names |= set(dir(importlib.import_module(f"monai.{module}")))
    assert not names & set(data.__all__)


def test_reading_text_elements_raises_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(radiograph(PatientAge="MARKER", PatientSex="MARKER"), tmp_path / "a.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_radiograph(path)
