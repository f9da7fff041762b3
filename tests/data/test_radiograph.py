from __future__ import annotations

import importlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, set_track_meta
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, RLELossless
from radiograph_files import lut, radiograph, ramp, save, uid

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


def test_signed_values(tmp_path):
    values = ramp(low=-2000, high=2000)
    image, info = render(tmp_path, values, signed=True)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)
    assert info.low == -2000


def test_signed_values_with_unset_sign_extension(tmp_path):
    values = ramp(low=-2000, high=2000)
    image, info = render(tmp_path, values & 0x0FFF, PixelRepresentation=1)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)
    assert info.low == -2000


def test_overlay_in_unused_high_bits_is_masked(tmp_path):
    overlay = (np.arange(240).reshape(12, 20) % 7 == 0).astype(np.int64) << 14
    image, _ = render(tmp_path, ramp() | overlay)
    np.testing.assert_allclose(image, unit(ramp()), atol=1e-6)


def test_high_bit_above_the_stored_bits(tmp_path):
    image, _ = render(tmp_path, (ramp() << 4) | 5, HighBit=15)
    np.testing.assert_allclose(image, unit(ramp()), atol=1e-6)


def test_eight_bits(tmp_path):
    values = ramp(low=3, high=250)
    pixels = values.astype(np.uint8).tobytes()
    image, _ = render(tmp_path, values, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels)
    np.testing.assert_allclose(image, unit(values), atol=1e-6)


def test_linear_window_follows_the_equation_of_the_standard(tmp_path):
    image, info = render(tmp_path, WindowCenter=[2000, 1], WindowWidth=[1000, 2])
    x = ramp()
    expected = np.where(x <= 2000 - 0.5 - 999 / 2, 0, np.where(x > 2000 - 0.5 + 999 / 2, 1, (x - 1999.5) / 999 + 0.5))
    np.testing.assert_allclose(image, expected, atol=1e-6)
    assert info.display_transform == "window LINEAR"


def test_linear_exact_and_sigmoid_windows(tmp_path):
    x = ramp()
    image, _ = render(tmp_path, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(image, np.clip((x - 2000) / 1000 + 0.5, 0, 1), atol=1e-6)
    image, info = render(tmp_path, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(image, 1 / (1 + np.exp(-4 * (x - 2000) / 1000)), atol=1e-6)
    assert info.display_transform == "window SIGMOID"


def test_window_of_width_one_is_a_step(tmp_path):
    image, _ = render(tmp_path, WindowCenter=2000, WindowWidth=1)
    np.testing.assert_array_equal(image, ramp() > 1999.5)


def test_window_applies_after_rescale(tmp_path):
    x = ramp() * 0.5 - 1000
    image, info = render(tmp_path, RescaleSlope=0.5, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=500.5)
    np.testing.assert_allclose(image, np.clip((x + 0.5) / 499.5 + 0.5, 0, 1), atol=1e-6)
    assert info.modality_transform == "rescale"


def test_negative_slope_turns_the_gray_scale(tmp_path):
    image, _ = render(tmp_path, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(image, 1 - unit(ramp()), atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("implicit", [False, True])
def test_voi_lut_goes_before_a_window_and_keeps_its_ends(tmp_path, vr, implicit):
    entries = np.arange(1000, 3000) * 8
    image, info = render(
        tmp_path, implicit=implicit, VOILUTSequence=lut(entries, 1000, 16, vr), WindowCenter=5, WindowWidth=5
    )
    np.testing.assert_allclose(image, np.clip(ramp(), 1000, 2999) * 8 / 65535, atol=1e-6)
    assert info.display_transform == "VOI LUT"


def test_big_endian_file_with_a_voi_lut(tmp_path):
    dataset = radiograph(VOILUTSequence=lut(np.arange(4096) * 10, 0, 16, "OW"))
    dataset.VOILUTSequence[0].LUTData = (np.arange(4096) * 10).astype(">u2").tobytes()
    dataset.PixelData = ramp().astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.set_original_encoding(False, False)
    image, _ = read_radiograph(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_allclose(image, ramp() * 10 / 65535, atol=1e-6)


def test_voi_lut_of_eight_bits_does_not_wrap(tmp_path):
    image, _ = render(tmp_path, VOILUTSequence=lut(np.arange(256), 3000, 8))
    np.testing.assert_allclose(image, np.clip(ramp() - 3000, 0, 255) / 255, atol=1e-6)


def test_packed_voi_lut_of_eight_bits(tmp_path):
    sequence = lut(np.arange(256), 3000, 8, "OW")
    sequence[0].LUTData = np.arange(256, dtype=np.uint8).tobytes()
    image, _ = render(tmp_path, VOILUTSequence=sequence)
    np.testing.assert_allclose(image, np.clip(ramp() - 3000, 0, 255) / 255, atol=1e-6)


@pytest.mark.parametrize("implicit", [False, True])
def test_voi_lut_of_signed_input(tmp_path, implicit):
    values = ramp(low=-1500, high=1500)
    image, _ = render(
        tmp_path, values, implicit=implicit, signed=True, VOILUTSequence=lut(np.arange(2001) * 30, -1000, 16)
    )
    np.testing.assert_allclose(image, np.clip(values + 1000, 0, 2000) * 30 / 65535, atol=1e-6)


def test_modality_lut_of_twelve_bits(tmp_path):
    image, info = render(tmp_path, ModalityLUTSequence=lut(4095 - np.arange(4096), 0, 12))
    np.testing.assert_allclose(image, 1 - unit(ramp()), atol=1e-6)
    assert info.modality_transform == "LUT"


def test_a_lut_that_does_not_fit_its_descriptor_is_refused(tmp_path):
    sequence = lut(np.arange(100))
    sequence[0].LUTDescriptor = [4096, 0, 16]
    with pytest.raises(CohortError, match="VOILUTSequence that cannot be read"):
        render(tmp_path, VOILUTSequence=sequence)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path, photometric):
    values = ramp(low=1000, high=3000)
    values[:, :4] = 4095
    values[:, 4] = 4094
    image, info = render(
        tmp_path,
        values,
        PixelPaddingValue=4095,
        PixelPaddingRangeLimit=4094,
        PhotometricInterpretation=photometric,
    )
    inside = unit(values[:, 5:])
    np.testing.assert_allclose(image[:, 5:], 1 - inside if photometric == "MONOCHROME1" else inside, atol=1e-6)
    assert (image[:, :5] == 0).all()
    assert info.padded_pixels == 60


def test_negative_padding_in_implicit_file(tmp_path):
    values = ramp(low=-100, high=2000)
    values[0] = -2000
    dataset = radiograph(values, signed=True)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    image, info = read_radiograph(save(dataset, tmp_path / "a.dcm", implicit=True))
    assert info.padded_pixels == 20
    assert info.low == values[1, 0]
    assert (image[0] == 0).all()


def test_nothing_but_padding_is_refused(tmp_path):
    with pytest.raises(CohortError, match="nothing but pixel padding"):
        render(tmp_path, np.full((4, 5), 7), PixelPaddingValue=7)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_equals_native(tmp_path, syntax, signed):
    values = ramp(64, 80, -1000, 1000) if signed else ramp(64, 80)
    dataset = radiograph(values, signed=signed)
    dataset.compress(syntax, generate_instance_uid=False)
    image, _ = read_radiograph(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_allclose(image, unit(values), atol=1e-6)


def test_jpeg_ls_equals_native():
    compressed, _ = read_radiograph(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False))
    native, _ = read_radiograph(get_testdata_file("MR_small.dcm", download=False))
    np.testing.assert_array_equal(compressed, native)


def test_truncated_compressed_frame_is_refused(tmp_path):
    dataset = radiograph()
    dataset.compress(RLELossless, generate_instance_uid=False)
    content = save(dataset, tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-60])
    with pytest.warns(UserWarning, match="End of file"), pytest.raises(CohortError, match=r"no image .no PixelData"):
        read_radiograph(tmp_path / "a.dcm")


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
